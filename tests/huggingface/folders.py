"""Small folders of Gemma 4 with random weights, made with transformers, and the models and processors that made them."""

import functools
import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers

from pollux.model import huggingface

torch = pytest.importorskip("torch", reason="torch (CPU) is not installed: scripts/setup development installs it")
transformers = pytest.importorskip("transformers.models.gemma4_unified", reason="transformers 5 with Gemma 4 is not installed")

from transformers import (  # noqa: E402
    Gemma3ForCausalLM,
    Gemma3TextConfig,
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
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor  # noqa: E402
from transformers.models.gemma4_unified.processing_gemma4_unified import Gemma4UnifiedProcessor  # noqa: E402
from transformers.video_utils import default_sample_indices_fn, read_video_pyav  # noqa: E402

S, F = "sliding_attention", "full_attention"
MEDIA = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
TURNS = ["<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"]
TURNS += ["<|channel>", "<channel|>", "<|think|>", "<|video|>", '<|"|>']
TEMPLATE = """{{ bos_token }}
{%- if tools or enable_thinking or messages[0]['role'] == 'system' -%}
{{ '<|turn>system\\n' }}
{%- if enable_thinking -%}{{ '<|think|>' }}{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] | trim }}{%- set messages = messages[1:] -%}{%- endif -%}
{%- for tool in tools or [] -%}
{{ '<|tool>declaration:' + tool['function']['name'] + (tool['function']['parameters'] | tojson) + '<tool|>' }}
{%- endfor -%}
{{ '<turn|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ raise_exception('a second system turn') }}{%- endif -%}
{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{%- for call in message['tool_calls'] or [] -%}
{{ '<|tool_call>call:' + call['function']['name'] + (call['function']['arguments'] | tojson) + '<tool_call|>' }}
{%- endfor -%}
{%- for answer in message['tool_responses'] or [] -%}
{{ '<|tool_response>response:' + answer['name'] + (answer['response'] | tojson) + '<tool_response|>' }}
{%- endfor -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- else -%}{{ '\\n<|' + item['type'] + '|>' }}{%- endif -%}
{%- endfor -%}
{%- if message['content'] or not message['tool_responses'] -%}{{ '<turn|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if not messages[-1]['tool_responses'] -%}{{ '<|turn>model\\n' }}{%- endif -%}
{%- if not enable_thinking -%}{{ '<|channel>thought\\n<channel|>' }}{%- endif -%}
{%- endif -%}"""
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
TOWERS = {  # 31B, 26B-A4B, E2B and E4B
    "dense": (dict(use_bidirectional_attention="vision"), dict(standardize=True), None),
    "experts": (TEXTS["experts"] | dict(use_bidirectional_attention="vision"), {}, dict(use_clipped_linears=False)),
    "per-layer": (TEXTS["shared keys and values"], dict(use_clipped_linears=True), dict(attention_context_left=6)),
}
FRAMES = 3  # of a clip


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


def processor(unified: bool, made: GemmaTokenizer, monkeypatch, frames: int = FRAMES):
    """transformers' own, except that Pillow resizes where it asks for torchvision, and PyAV decodes clips."""
    kind = Gemma4UnifiedProcessor if unified else Gemma4Processor
    monkeypatch.setattr(kind, "check_argument_for_proper_class", lambda *_: object)
    functional = types.ModuleType("torchvision.transforms.v2.functional")
    functional.InterpolationMode, functional.resize = object, _resize
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchvision.transforms.v2"].functional = functional
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    monkeypatch.setattr("builtins.tvF", functional, raising=False)  # which one of the modules only imports if there is torchvision
    family = "gemma4_unified" if unified else "gemma4"
    videos, pictures = (
        importlib.import_module(f"transformers.models.{family}.{medium}_processing_{family}") for medium in ("video", "image")
    )
    name = "Gemma4Unified" if unified else "Gemma4"
    images = _Patches(getattr(pictures, f"{name}ImageProcessor")) if unified else Gemma4ImageProcessorPil(max_soft_tokens=70)
    sounds = Gemma4UnifiedAudioFeatureExtractor() if unified else Gemma4AudioFeatureExtractor()
    return kind(sounds, images, made, _Patches(getattr(videos, f"{name}VideoProcessor"), frames), chat_template=TEMPLATE)


class _Patches:
    """What a processor of transformers does with decoded pictures, or with the frames of clips."""

    def __init__(self, theirs: type, frames: int = 0):
        self.theirs, self.frames = theirs, frames

    def __call__(self, media, **_):
        settings = dict(patch_size=PATCH, max_soft_tokens=70, pooling_kernel_size=POOL, return_tensors="pt", resample=None)
        settings |= dict(do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=None, image_std=None)
        if not self.frames:
            pixels = [np.asarray(picture.convert("RGB")).copy() for row in media for picture in row]
            return self.theirs._preprocess(self, [torch.tensor(p).permute(2, 0, 1) for p in pixels], **settings)
        choose = functools.partial(default_sample_indices_fn, num_frames=self.frames)
        decoded = [read_video_pyav(str(path), choose) for path in media]
        done = self.theirs._preprocess(self, [torch.tensor(frames).permute(0, 3, 1, 2) for frames, _ in decoded], **settings)
        done["video_metadata"] = [metadata for _, metadata in decoded]
        return done

    def fetch_images(self, media):
        return media

    def aspect_ratio_preserving_resize(self, *args, **settings):
        return self.theirs.aspect_ratio_preserving_resize(self, *args, **settings)

    def rescale_and_normalize(self, pixels, _, factor, *__):
        return pixels.float() * factor


def _resize(pixels, size, **_):
    """Pillow's bicubic of uint8 [..., 3, H, W], which that of torchvision is made after."""
    flat = pixels.reshape(-1, *pixels.shape[-3:]).permute(0, 2, 3, 1).numpy()
    done = [np.asarray(PIL.Image.fromarray(x).resize(size[::-1], PIL.Image.Resampling.BICUBIC)) for x in flat]
    return torch.tensor(np.stack(done)).permute(0, 3, 1, 2).reshape(*pixels.shape[:-2], *size)


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
    return ids | {"video_token_id": made.convert_tokens_to_ids("<|video|>")}


def save(model, folder: Path, made: GemmaTokenizer | None = None):
    """Random weights, the folder, and back the model in evaluation mode."""
    model = model.eval()
    randomise(model)
    model.save_pretrained(folder)
    if made is not None:
        made.save_pretrained(folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        budgets = {"image_processor": {"max_soft_tokens": 70}, "video_processor": {"max_soft_tokens": 70, "num_frames": FRAMES}}
        (folder / "processor_config.json").write_text(json.dumps(budgets))
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


def third_model(folder: Path, **changes):
    """A text model of Gemma 3, whose norms multiply by one plus their weights."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "layer_types", "head_dim", "sliding_window")
    sizes = {name: TEXT[name] for name in names} | dict(num_attention_heads=4, num_key_value_heads=1, query_pre_attn_scalar=12)
    model = save(Gemma3ForCausalLM(Gemma3TextConfig(**sizes | changes)), folder)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 1:
                values -= 1
    model.save_pretrained(folder)
    return model
