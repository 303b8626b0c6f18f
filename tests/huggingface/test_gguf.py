"""A GGUF file holds what the folder holds, under the names and in the types of llama.cpp; computed as llama.cpp's sources say, in float64
numpy, it gives the model's logits. What llama.cpp cannot compute is refused by name. The slow tests open the files with llama.cpp."""

import dataclasses
import json

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import pollux
from pollux.cli import main
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.model import folder as folder_of
from pollux.model import params
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.family import pattern, soft_inputs
from pollux.tokens.config import TokensConfig
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import SPECIALS, Vocabulary

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'pollux[export]'")
from pollux.shrink.gguf_file import to_gguf  # noqa: E402

WORDS = Vocabulary(train_bpe(["a small text for a small tokeniser, with some words in it: 1, 2, 3"] * 3, 320))
CODES = 8  # ids after those of text
RELU2 = FeedForwardConfig(96, "relu2", gated=False)
SILU = FeedForwardConfig(96, "silu")
OWN = {
    "norms before the sub-blocks, squared ReLU": (pattern(4, 2, 32, RELU2, local=2, window=6, native=64, value_norm=False), False),
    "norms before the sub-blocks, gated SiLU": (pattern(4, 2, 32, SILU, local=1, window=6, native=64, value_norm=False), False),
    "norms around the sub-blocks": (pattern(4, 2, 32, 96, local=2, window=6, native=64), True),
}
SHARED = dict(num_hidden_layers=10, layer_types=[folders.S, folders.S, folders.F] * 3 + [folders.F], num_kv_shared_layers=4)
GEMMA = folders.TEXTS | {"shared keys and values": folders.TEXTS["shared keys and values"] | SHARED}


def own_model(folder, kind, **changes):
    """A model of the family with random weights that f16 holds, norms around 1."""
    block, post_norm = OWN[kind]
    config = dict(num_groups=2, post_norm=post_norm, max_positions=64, soft_inputs=soft_inputs(TokensConfig())) | changes
    config = ModelConfig("own", WORDS.size + CODES, 64, block, **config)
    random = np.random.default_rng(0)

    def weight(path, shape):
        norm = shape.ndim < 2 or folder_of.tensor_name(path).endswith(("norm", "scale"))
        values = random.normal(1, 0.2, shape.shape) if norm else random.normal(0, shape.shape[-1] ** -0.5, shape.shape)
        return jnp.asarray(np.float32(np.float16(values)))

    weights = jax.tree_util.tree_map_with_path(weight, params.abstract(config))
    Model(weights, config, vocabulary=WORDS, sampling=Sampling(temperature=0)).save(folder)
    return pollux.load(folder)


def gemma_folder(folder, **changes):
    """A text model of transformers with a tokenizer, its weights in f16."""
    folders.save(folders.Gemma4ForCausalLM(folders.Gemma4TextConfig(**folders.TEXT | changes)).half(), folder, folders.tokenizer())


def written(folder, out, kind="f16"):
    assert main(["export", str(folder), "--to", "gguf", "--type", kind, "--out", str(out)]) == 0
    return gguf.GGUFReader(out)


def arrays(file):
    """Tensors by name, as float64."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]).astype(np.float64) for t in file.tensors}


def field(file, name):
    name = name.replace("ARCH", file.fields["general.architecture"].contents())
    return file.fields[name].contents() if name in file.fields else None


def rms(x, weight=1.0, eps=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotated(x, base, factors):
    """x [T, N, H]: each pair (i, i + H / 2) turned by t base^(-2i/H) / factor, as ggml's rope of type neox."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] * base ** (-np.arange(half) / half) / factors
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def computed(file, ids):
    """Logits [T, V] of a file: the graphs of gemma4 and exaone-moe in llama.cpp, in float64."""
    w, gemma = arrays(file), field(file, "general.architecture") == "gemma4"
    blocks, local = field(file, "ARCH.block_count"), field(file, "ARCH.attention.sliding_window_pattern")
    heads, kv_heads = field(file, "ARCH.attention.head_count"), field(file, "ARCH.attention.head_count_kv")
    bases = [field(file, "ARCH.rope.freq_base"), field(file, "ARCH.rope.freq_base_swa" if gemma else "ARCH.rope.freq_base")]
    with_own = blocks - (field(file, "ARCH.attention.shared_kv_layers") or 0)
    x = w["token_embd.weight"][ids] * (w["token_embd.weight"].shape[1] ** 0.5 if gemma else 1)
    distance = np.subtract.outer(np.arange(len(ids)), np.arange(len(ids)))
    cache = {}
    for i in range(blocks):
        b = {name.split(".", 2)[2].removesuffix(".weight"): value for name, value in w.items() if name.startswith(f"blk.{i}.")}
        far, near = not local[i], local[i]
        h = rms(x, b["attn_norm"])
        size = field(file, "ARCH.attention.key_length_swa" if near and gemma else "ARCH.attention.key_length")
        factors = w["rope_freqs.weight"] if gemma and far else 1.0

        def heads_of(name, norm, number, h=h, b=b, size=size):
            return rms((h @ b[name].T).reshape(len(h), number, size), norm)

        turn = (lambda y, near=near, factors=factors: rotated(y, bases[near], factors)) if gemma or near else (lambda y: y)
        q = turn(heads_of("attn_q", b["attn_q_norm"], heads[i]))
        if i < with_own:
            k = turn(heads_of("attn_k", b["attn_k_norm"], kv_heads[i]))
            v = (h @ b.get("attn_v", b["attn_k"]).T).reshape(k.shape)
            cache[i] = k, rms(v) if gemma else v
        k, v = cache[i] if i < with_own else cache[with_own - (2 if near else 1)]
        k, v = (np.repeat(y, heads[i] // kv_heads[i], 1) for y in (k, v))
        scores = np.einsum("tnh,snh->nts", q, k) * (1 if gemma else size**-0.5)
        seen = (distance >= 0) & ((distance < field(file, "ARCH.attention.sliding_window")) | far)
        scores = np.exp(np.where(seen, scores, -np.inf) - scores.max(-1, keepdims=True))
        y = np.einsum("nts,snh->tnh", scores / scores.sum(-1, keepdims=True), v).reshape(len(h), -1) @ b["attn_output"].T
        x = x + (rms(y, b["post_attention_norm"]) if gemma else y)
        h = rms(x, b["ffn_norm"])
        gate = h @ b["ffn_gate"].T
        gelu = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        y = ((gelu if gemma else 0.5 * gate * (1 + np.tanh(gate / 2))) * (h @ b["ffn_up"].T)) @ b["ffn_down"].T
        x = x + (rms(y, b["post_ffw_norm"]) if gemma else y)
        x = x * b.get("layer_output_scale", 1)
    y = rms(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T
    cap = field(file, "ARCH.final_logit_softcapping")
    return np.tanh(y / cap) * cap if cap else y


def ids_of(model, length=40):
    return np.random.default_rng(0).integers(len(SPECIALS), model.config.vocab_size, length)


@pytest.mark.parametrize("kind", OWN)
def test_a_file_of_the_family_computes_the_logits_of_the_model(kind, tmp_path):
    model = own_model(tmp_path / "own", kind)
    expected = model.logits(ids_of(model))
    result = computed(written(tmp_path / "own", tmp_path / "own.gguf"), ids_of(model))
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["one kv-head, keys are values", "an irregular pattern, untied"])
def test_a_file_of_gemma_computes_the_logits_of_the_folder(kind, tmp_path):
    gemma_folder(tmp_path / "there", **GEMMA[kind])
    expected = pollux.load(tmp_path / "there", jnp.float32).logits(np.arange(5, 45))
    result = computed(written(tmp_path / "there", tmp_path / "there.gguf"), np.arange(5, 45))
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-4 * np.abs(expected).max())


# The names in llama.cpp's sources of what transformers calls otherwise.
NAMES = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}


@pytest.mark.parametrize("kind", ["shared keys and values", "experts"])
@pytest.mark.parametrize(("quantised", "error"), [("f16", 2**-11), ("q8_0", 1 / 127), ("q4_0", 1 / 7)])
def test_tensors_are_those_of_the_folder_in_llama_types(kind, quantised, error, tmp_path):
    gemma_folder(tmp_path / "there", **GEMMA[kind])
    file = written(tmp_path / "there", tmp_path / "there.gguf", quantised)
    found, types = arrays(file), {t.name: t.tensor_type.name.lower() for t in file.tensors}
    with safe_open(tmp_path / "there" / "model.safetensors", "numpy") as theirs:
        for name in theirs.keys():  # noqa: SIM118 (not a dict)
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            ours = TOP.get(name.removeprefix("model.")) or (rest in NAMES and f"blk.{number}.{NAMES[rest]}")
            if not ours:
                continue
            expected = theirs.get_tensor(name)
            kept = ours.endswith(".scale") or expected.ndim < 2 or "ffn_gate_inp" in ours
            wide = quantised == "q4_0" and ours == "token_embd.weight"  # it also makes the logits
            odd = expected.shape[-1] % 32 or ours.startswith("per_layer_model")
            assert types[ours] == ("f32" if kept else "f16" if odd else "q8_0" if wide else quantised), ours
            largest = np.abs(expected).max(-1, keepdims=True) if not odd or kept else np.abs(expected)
            assert (np.abs(found[ours] - expected) <= largest * (0 if kept else error) + 1e-7).all(), ours
    assert len({name.split(".")[1] for name in found if name.startswith("blk.")}) == field(file, "ARCH.block_count")


def test_metadata_says_what_llama_needs(tmp_path):
    kind = "norms before the sub-blocks, squared ReLU"
    own_model(tmp_path / "own", kind, max_positions=4096)
    file = written(tmp_path / "own", tmp_path / "own.gguf", "q8_0")
    expected = {
        "general.architecture": "exaone-moe",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "ARCH.context_length": 64,  # beyond it queries scale with log n
        "ARCH.leading_dense_block_count": 6,
        "ARCH.attention.sliding_window": 6,
        "ARCH.attention.sliding_window_pattern": [True, True, False] * 2,
        "ARCH.attention.head_count_kv": [2] * 6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 3,
    }
    assert {name: field(file, name) for name in expected} == expected
    tokens, types = field(file, "tokenizer.ggml.tokens"), field(file, "tokenizer.ggml.token_type")
    data = json.loads((tmp_path / "own" / "tokenizer.json").read_text())
    assert {token: i for i, token in enumerate(tokens)}.items() >= data["model"]["vocab"].items()
    assert len(tokens) == len(data["model"]["vocab"]) + CODES
    assert [(gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED).index(x) for x in types] == (
        [0] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS) - CODES) + [2] * CODES
    )
    assert field(file, "tokenizer.ggml.merges") == [" ".join(pair) for pair in data["model"]["merges"]]


def test_ids_of_image_codes_are_left_out(tmp_path):
    own_model(tmp_path / "own", "norms around the sub-blocks", tied=False)
    model = pollux.load(tmp_path / "own")
    to_gguf(Model(model.params, model.config, vocabulary=Vocabulary(WORDS.tokenizer, (CODES,))), tmp_path / "own.gguf", "f16")
    file = gguf.GGUFReader(tmp_path / "own.gguf")
    assert len(field(file, "tokenizer.ggml.tokens")) == WORDS.size
    assert arrays(file)["token_embd.weight"].shape == arrays(file)["output.weight"].shape == (WORDS.size, 64)
    np.testing.assert_array_equal(arrays(file)["output.weight"], np.asarray(model.params["unembed"]).T[: WORDS.size])
    assert field(file, "tokenizer.ggml.suppress_tokens") == [i for i, name in enumerate(SPECIALS) if name not in
                                                             ("<eos>", "<end_of_turn>", "<call>", "</call>")]  # fmt: skip


def test_the_words_of_gemma_are_written_with_their_types(tmp_path):
    gemma_folder(tmp_path / "there")
    file = written(tmp_path / "there", tmp_path / "there.gguf")
    types = dict(zip(field(file, "tokenizer.ggml.tokens"), field(file, "tokenizer.ggml.token_type"), strict=True))
    expected = {"<0x0A>": "BYTE", "<bos>": "CONTROL", "<turn|>": "CONTROL", "<tool_call|>": "USER_DEFINED", "▁": "NORMAL"}
    assert {token: gguf.TokenType(types[token]).name for token in expected} == expected
    assert field(file, "tokenizer.chat_template") == folders.TEMPLATE
    assert (field(file, "tokenizer.ggml.eos_token_id"), field(file, "tokenizer.ggml.eot_token_id")) == (1, 607)


ATTENTION = AttentionConfig(2, 1, 4, position="none")
LAYER = LayerConfig(ATTENTION, RELU2)
GEMMA_LAYER = LayerConfig(AttentionConfig(2, 1, 4, value_norm=True), FeedForwardConfig(8))


@pytest.mark.parametrize(
    ("layers", "changes", "feature"),
    [
        ([dataclasses.replace(LAYER, parallel=True)], {}, "parallel attention and feed-forward"),
        ([dataclasses.replace(LAYER, experts=ExpertsConfig(4, 2, 8))], {}, "experts without norms"),
        ([dataclasses.replace(LAYER, feed_forward=FeedForwardConfig(8))], {}, "a feed-forward other than"),
        ([dataclasses.replace(LAYER, attention=AttentionConfig(2, 1, 4))], {}, "global layers with a position"),
        ([dataclasses.replace(LAYER, attention=dataclasses.replace(ATTENTION, soft_cap=3.0))], {}, "a soft_cap on the scores"),
        ([LAYER], dict(logit_soft_cap=3.0), "a logit_soft_cap"),
        ([LAYER, dataclasses.replace(LAYER, feed_forward=FeedForwardConfig(8, "silu"))], {}, "layers of several shapes"),
        ([dataclasses.replace(GEMMA_LAYER, parallel=True)], dict(post_norm=True), "parallel attention and feed-forward"),
        ([dataclasses.replace(GEMMA_LAYER, attention=dataclasses.replace(GEMMA_LAYER.attention, window=4, position="none")), GEMMA_LAYER],
         dict(post_norm=True), "local layers whose heads are not rotated"),
    ],
)  # fmt: skip
def test_what_llama_cannot_compute_is_refused_by_name(layers, changes, feature, tmp_path):
    config = ModelConfig("own", 300, 8, tuple(layers), num_groups=1, **dict(post_norm=False) | changes)
    with pytest.raises(ValueError, match=f"has no place for {feature}"):
        to_gguf(Model({}, config, vocabulary=WORDS), tmp_path / "own.gguf", "f16")


def test_shared_keys_that_llama_would_take_from_another_layer_are_refused(tmp_path, capsys):
    gemma_folder(tmp_path / "there", **folders.TEXTS["shared keys and values"])
    assert main(["export", str(tmp_path / "there"), "--to", "gguf", "--out", str(tmp_path / "there.gguf")]) == 2
    assert "has no place for shared keys and values unless" in capsys.readouterr().err


def test_values_beyond_f16_leave_no_file(tmp_path, capsys):
    model = own_model(tmp_path / "own", "norms around the sub-blocks")
    model.params["embed"] = model.params["embed"] * 1e7
    model.save(tmp_path / "large")
    assert main(["export", str(tmp_path / "large"), "--to", "gguf", "--out", str(tmp_path / "large.gguf")]) == 2
    assert "token_embd.weight has values that f16 cannot hold" in capsys.readouterr().err
    assert not list(tmp_path.glob("large.gguf*"))


def test_a_wrong_place_or_type_is_one_sentence(tmp_path, capsys):
    there = tmp_path / "there.gguf"
    there.write_text("something of the user's")
    assert main(["export", str(tmp_path), "--to", "gguf", "--out", str(there)]) == 2
    assert "there.gguf exists" in capsys.readouterr().err and there.read_text() == "something of the user's"
    assert main(["export", str(tmp_path), "--to", "hf", "--type", "q8_0", "--out", str(tmp_path / "new")]) == 2
    assert "--type is about --to gguf" in capsys.readouterr().err


def opened(path):
    """A file in llama.cpp, with keys and values of the cache in float32."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it is built from source, which takes minutes")
    exact = dict(type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    return llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, **exact)


def llama_logits(llama, ids):
    llama.reset()
    llama.eval([int(i) for i in ids])
    return np.array(llama.scores[: len(ids)])


def difference(result, expected):
    """Mean, as a share of how much logits vary. In f16 it is that of a GELU looked up in a table of f16."""
    return np.abs(result - expected).mean() / expected.std()


@pytest.mark.slow
@pytest.mark.parametrize(("quantised", "tolerance"), [("f16", 3e-3), ("q8_0", 6e-2), ("q4_0", 0.4)])
@pytest.mark.parametrize("kind", OWN)
def test_llama_computes_the_logits_of_the_family(kind, quantised, tolerance, tmp_path):
    model = own_model(tmp_path / "own", kind)
    written(tmp_path / "own", tmp_path / "own.gguf", quantised)
    ids = ids_of(model, 60)
    assert difference(llama_logits(opened(tmp_path / "own.gguf"), ids), model.logits(ids)) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("kind", GEMMA)
def test_llama_computes_the_logits_of_gemma(kind, tmp_path):
    gemma_folder(tmp_path / "there", **GEMMA[kind])
    written(tmp_path / "there", tmp_path / "there.gguf")
    ids = np.arange(5, 65)
    expected = pollux.load(tmp_path / "there", jnp.float32).logits(ids)
    assert difference(llama_logits(opened(tmp_path / "there.gguf"), ids), expected) < 3e-3


TEXTS = [
    "Which colour is the circle?",
    "don't we'll I'VE 'S x's  'd",
    "one\n\ntwo  spaces\ttab \r\n end   ",
    "1 2 3 77 1024 ½ ² Ⅷ",
    "naïve café 你好 мир 🙂 ـعر",
    "<bos> is five characters, <turn|> and <end_of_turn> are text too",
]


@pytest.mark.slow
@pytest.mark.parametrize("gemma", [False, True])
def test_llama_reads_and_writes_the_same_tokens(gemma, tmp_path):
    folder = tmp_path / "model"
    if gemma:
        gemma_folder(folder)
        model = pollux.load(folder)
    else:
        model = own_model(folder, "norms around the sub-blocks")
    written(folder, tmp_path / "model.gguf")
    llama = opened(tmp_path / "model.gguf")
    for text in TEXTS:
        ids = model.vocabulary.encode_text(text)
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == ids
        assert llama.detokenize(ids).decode() == model.vocabulary.decode(ids)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    spell = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], eos_token="<eos>", bos_token="<bos>")
    message = {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]}
    prompt = spell(messages=[message]).prompt.encode()
    assert llama.tokenize(prompt, add_bos=False, special=True) == model.prompt(TEXTS[0]).ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", OWN)
def test_llama_writes_the_same_text(kind, tmp_path):
    model = own_model(tmp_path / "own", kind)
    written(tmp_path / "own", tmp_path / "own.gguf")
    llama = opened(tmp_path / "own.gguf")
    ids = model.prompt("some words").ids.tolist()
    found = []
    for i in llama.generate(ids, temp=0.0):
        found.append(i)
        if len(found) == 32:
            break
    for i in range(32):  # teacher-forced: a step counts where the best id is clear of the second by more than rounding
        best = np.argsort(logits := model.logits([*ids, *found[:i]])[-1])[::-1]
        assert found[i] == best[0] or logits[best[0]] - logits[found[i]] < 1e-2 * np.abs(logits).max()
