"""The family: named sizes, each a function from vocabulary and token config to a ModelConfig.

Nano-1 and Nano-2 have the published parameter counts. Widths and depths, and every number of flash, pro and ultra, are our choice:
nothing about them is public.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.tokens.config import TokensConfig

NATIVE_LENGTH = 32_768


def soft_inputs(tokens: TokensConfig, grid: int = 64) -> tuple[SoftInputConfig, ...]:
    """Embedders for the features that `tokens` produces."""
    return (
        SoftInputConfig("image", tokens.image.features, grid=grid),
        SoftInputConfig("audio", tokens.audio.features),
        SoftInputConfig("video", tokens.video.features, grid=grid),
    )


def small_soft_inputs(
    tokens: TokensConfig, hidden: int, stem: tuple[tuple[int, int, int], ...], colour_grid: int, grid: int = 16
) -> tuple[SoftInputConfig, ...]:
    """Embedders that learn from few examples: convolutions over the form of each patch, its colours apart, a hidden layer for sound,
    no norm on raw features. Frames of a clip are seen as pictures are, if their patches are of one size."""
    image = SoftInputConfig("image", tokens.image.features, grid=grid, stem=stem, colour_grid=colour_grid, in_norm=False)
    audio = SoftInputConfig("audio", tokens.audio.features, hidden=hidden, in_norm=False)
    video = dataclasses.replace(image, name="video", features=tokens.video.features, in_channels=6 if tokens.video.difference else 3)
    if tokens.video.patch == tokens.image.patch:
        video = dataclasses.replace(video, shares="image", stem=stem if tokens.video.difference else (), colour_grid=0, grid=0)
    return image, audio, video


def pattern(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    feed_forward: FeedForwardConfig | int,
    *,
    local: int = 5,
    window: int = 1024,
    native: int = NATIVE_LENGTH,
    parallel: bool = False,
    experts: ExpertsConfig | None = None,
    value_norm: bool = True,
) -> tuple[LayerConfig, ...]:
    """`local` sliding-window layers with RoPE, then one global layer without position whose queries scale with log n.

    A number for `feed_forward` is the hidden size of a gated GELU.
    """
    dense = FeedForwardConfig(feed_forward) if isinstance(feed_forward, int) else feed_forward

    def layer(attention: AttentionConfig) -> LayerConfig:
        return LayerConfig(attention, dense, experts, parallel)

    near = AttentionConfig(num_heads, num_kv_heads, head_dim, window=window, value_norm=value_norm)
    far = AttentionConfig(num_heads, num_kv_heads, head_dim, position="none", log_n_native=native, value_norm=value_norm)
    return (layer(near),) * local + (layer(far),)


def tiny(vocab_size: int = 1024, tokens: TokensConfig | None = None) -> ModelConfig:
    """The quick-start model: about 1.4 M parameters, small enough to learn on two cores in minutes.

    Squared ReLU without a gate and no norms after the sub-blocks: on a CPU they save a quarter of a step. As many kv-heads as heads: one
    of 32 values is too narrow a way for what a patch shows.
    """
    feed_forward = FeedForwardConfig(512, "relu2", gated=False)
    block = pattern(4, 4, 32, feed_forward, local=1, window=128, native=2048, value_norm=False)
    inputs = small_soft_inputs(tokens or TokensConfig(), hidden=256, stem=((4, 2, 24), (3, 2, 48)), colour_grid=4)
    return ModelConfig("tiny", vocab_size, 128, block, num_groups=2, soft_inputs=inputs, post_norm=False, max_positions=2048)


def mini(vocab_size: int = 16_384, tokens: TokensConfig | None = None) -> ModelConfig:
    """About 60 M parameters: a day on one GPU."""
    block = pattern(8, 2, 64, 1536, local=5, window=512, native=4096)
    return ModelConfig("mini", vocab_size, 512, block, num_groups=3, soft_inputs=soft_inputs(tokens or TokensConfig()), max_positions=4096)


def nano_1(vocab_size: int = 256_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """1.8 B parameters (the size is published, the shape is ours)."""
    block = pattern(8, 1, 256, 7168)
    return ModelConfig("nano-1", vocab_size, 2048, block, num_groups=4, soft_inputs=soft_inputs(tokens or TokensConfig()))


def nano_2(vocab_size: int = 256_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """3.25 B parameters (the size is published, the shape is ours)."""
    block = pattern(10, 1, 256, 9216)
    return ModelConfig("nano-2", vocab_size, 2560, block, num_groups=5, soft_inputs=soft_inputs(tokens or TokensConfig()))


def flash(vocab_size: int = 256_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """Attention and feed-forward in parallel, as reported for Flash; all numbers ours."""
    block = pattern(16, 1, 256, 16_384, parallel=True)
    return ModelConfig("flash", vocab_size, 4096, block, num_groups=6, soft_inputs=soft_inputs(tokens or TokensConfig()))


def pro(vocab_size: int = 256_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """A sparse mixture of experts, as reported for the 1.5 generation; all numbers ours."""
    block = pattern(24, 1, 256, 8192, experts=ExpertsConfig(64, 4, 4096))
    return ModelConfig("pro", vocab_size, 6144, block, num_groups=8, soft_inputs=soft_inputs(tokens or TokensConfig()))


def ultra(vocab_size: int = 256_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """A large dense decoder with multi-query attention; all numbers ours."""
    block = pattern(64, 1, 256, 57_344)
    return ModelConfig("ultra", vocab_size, 16_384, block, num_groups=16, soft_inputs=soft_inputs(tokens or TokensConfig()))


def textbook(vocab_size: int = 32_000, tokens: TokensConfig | None = None) -> ModelConfig:
    """The transformer of Vaswani et al. 2017 as a decoder: LayerNorm after each sub-block, ReLU with biases, sinusoids, MHA."""
    attention = AttentionConfig(8, 8, 64, position="sinusoidal", qk_norm=False, bias=True)
    layer = LayerConfig(attention, FeedForwardConfig(2048, "relu", gated=False, bias=True))
    return ModelConfig("textbook", vocab_size, 512, (layer,), num_groups=6, norm="layer", norm_eps=1e-5, pre_norm=False, max_positions=2048)


MODELS: dict[str, Callable[..., ModelConfig]] = {
    "tiny": tiny,
    "mini": mini,
    "nano-1": nano_1,
    "nano-2": nano_2,
    "flash": flash,
    "pro": pro,
    "ultra": ultra,
    "textbook": textbook,
}


def model(name: str, *args, **kwargs) -> ModelConfig:
    """The named size. Raises ValueError that lists the names."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; the family is {', '.join(MODELS)}")
    return MODELS[name](*args, **kwargs)
