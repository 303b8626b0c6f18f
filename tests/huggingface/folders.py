"""Small folders of Gemma 4 with random weights, made with transformers, and the models and processors that made them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers

from pollux.model import huggingface

torch = pytest.importorskip("torch", reason="torch (CPU) is not installed: scripts/setup development installs it")
transformers = pytest.importorskip("transformers.models.gemma4_unified", reason="transformers 5 with Gemma 4 is not installed")

from transformers import (  # noqa: E402
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    GemmaTokenizer,
)
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor  # noqa: E402
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil  # noqa: E402
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor  # noqa: E402

S, F = "sliding_attention", "full_attention"
MEDIA = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
TURNS = ["<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>", '<|"|>']
TEMPLATE = """{{ bos_token }}{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<|turn>' + role + '\\n' }}
{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}
{%- elif item['type'] == 'image' -%}{{ '<|image|>' }}
{%- elif item['type'] == 'audio' -%}{{ '<|audio|>' }}
{%- else -%}{{ raise_exception('no ' + item['type']) }}{%- endif -%}
{%- endfor -%}
{{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}{%- endif -%}"""
TEXT = dict(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=6,
    layer_types=[S, S, F] * 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    global_head_dim=16,
    sliding_window=5,
    hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=640,
    max_position_embeddings=4096,
    final_logit_softcapping=5.0,
)
PATCH, POOL = 16, 3
VISION = dict(
    patch_size=PATCH,
    pooling_kernel_size=POOL,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=3,
    head_dim=8,
    position_embedding_size=300,
)
AUDIO = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, subsampling_conv_channels=[128, 8], output_proj_dims=20)
TEXTS = {
    "dense": {},
    "one kv-head, keys are values": dict(attention_k_eq_v=True, num_key_value_heads=4, num_global_key_value_heads=1),
    "per-layer embeddings": dict(hidden_size_per_layer_input=6),
    "experts": dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=12),
    "shared keys and values": dict(
        num_hidden_layers=11,
        layer_types=[S, S, F] * 3 + [S, F],
        num_kv_shared_layers=4,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=6,
    ),
    "an irregular pattern, untied": dict(num_hidden_layers=5, layer_types=[S, F, F, S, F], tie_word_embeddings=False),
}
TOWERS = {
    "two-way images": (dict(use_bidirectional_attention="vision"), dict(standardize=True), dict(use_clipped_linears=False)),
    "bounded linear maps": (dict(TEXTS["shared keys and values"]), dict(use_clipped_linears=True), dict(attention_context_left=6)),
    "no audio": ({}, {}, None),
}


def tokenizer() -> GemmaTokenizer:
    """A byte-fallback BPE with Gemma's normaliser and special tokens."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    text = Path(__file__).read_text().splitlines()
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=600, special_tokens=first, show_progress=False))
    model = json.loads(raw.to_str())["model"]
    made = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], extra_special_tokens=MEDIA)
    made.add_special_tokens({"additional_special_tokens": TURNS})
    return made


def processor(made: GemmaTokenizer, monkeypatch) -> Gemma4Processor:
    """transformers' own, without a processor of videos, which would need torchvision."""
    monkeypatch.setattr(Gemma4Processor, "check_argument_for_proper_class", lambda *_: object)
    images = Gemma4ImageProcessorPil(max_soft_tokens=70)
    return Gemma4Processor(Gemma4AudioFeatureExtractor(), images, made, object(), chat_template=TEMPLATE)


def randomise(model) -> None:
    """Weights that matter: unit-sized products, norms around 1, bounds that clip; queries and steps
    of the residual stream small, or rounding is magnified."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("_max", "_min")):
                values.fill_(2.5 if name.endswith("max") else -2.5)
            elif values.ndim > 1 and "timescales" not in name:
                values.normal_(0, values.shape[-1] ** -0.5, generator=generator)
            elif name.endswith("q_norm.weight") or "post_" in name and values.ndim == 1:
                values.normal_(0.4, 0.1, generator=generator)
            elif name.endswith((".weight", ".bias", ".scalar", "layer_scalar", "expert_scale", "dim_scale", ".scale")):
                values.normal_(1, 0.2, generator=generator)
            elif name.endswith(("std_bias", "std_scale")):
                values.normal_(0.5, 0.2, generator=generator)


def _ids(made: GemmaTokenizer) -> dict[str, int]:
    names = {"eoa_token": "eoa_token_index"}
    ids = {names.get(name, f"{name}_id"): made.convert_tokens_to_ids(token) for name, token in MEDIA.items()}
    return ids | {"video_token_id": 639}


def save(model, folder: Path, made: GemmaTokenizer | None = None):
    """Random weights, the folder, and back the model in evaluation mode."""
    model = model.eval()
    randomise(model)
    model.save_pretrained(folder)
    if made is not None:
        made.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 70}}))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, made.convert_tokens_to_ids("<turn|>")]}))
    return model


def text_model(folder: Path, **changes):
    return save(Gemma4ForCausalLM(Gemma4TextConfig(**TEXT | changes)), folder)


def tower_model(folder: Path, kind: str, made: GemmaTokenizer):
    text, vision, audio = TOWERS[kind]
    config = Gemma4Config(
        text_config=TEXT | text, vision_config=VISION | vision, audio_config=None if audio is None else AUDIO | audio, **_ids(made)
    )
    return save(Gemma4ForConditionalGeneration(config), folder, made)


def unified_model(folder: Path, made: GemmaTokenizer):
    config = Gemma4UnifiedConfig(
        text_config=TEXT | TEXTS["one kv-head, keys are values"],
        vision_config=dict(patch_size=PATCH, pooling_kernel_size=POOL, mm_embed_dim=24, mm_posemb_size=80, output_proj_dims=24),
        audio_config=dict(audio_embed_dim=640),
        **_ids(made),
    )
    return save(Gemma4UnifiedForConditionalGeneration(config), folder, made)


def add_products(model, folder: Path, config, adapters, scale: float) -> None:
    """Add scale A B to the weights that our names stand for."""
    places = huggingface.sources(config, json.loads((folder / "config.json").read_text()))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, pair in adapters.items():
            change = scale * np.float64(pair["a"]) @ np.float64(pair["b"])
            for source, one in zip(places[name], change.reshape(-1, *change.shape[-2:]), strict=True):
                assert source.change == "transposed"
                weights[source.name] += torch.tensor(one.T, dtype=torch.float32)
