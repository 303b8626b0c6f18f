"""One frozen config chooses everything about a decoder: size, layer pattern, attention kinds, experts, soft inputs.

A model is `num_groups` repetitions of `pattern` (scanned) followed by `tail` (unrolled, usually empty).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Position = Literal["rope", "none", "sinusoidal"]
Activation = Literal["gelu", "silu", "relu", "relu2"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_activation(name: str) -> None:
    _require(name in get_args(Activation), f"activation {name!r} must be one of {', '.join(get_args(Activation))}")


@dataclass(frozen=True)
class AttentionConfig:
    """One attention sub-block. kv heads: num_heads = MHA, 1 = MQA, between = GQA."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int = 0  # 0 = global; w > 0: a query sees the last w positions, itself included
    position: Position = "rope"
    rope_base: float = 10_000.0
    rope_fraction: float = 1.0  # share of the head rotated; the rest carries no position
    log_n_native: int = 0  # > 0: queries are multiplied by max(1, log n / log native), n = position + 1
    qk_norm: bool = True
    value_norm: bool = False  # RMS norm without a scale
    values_reuse_keys: bool = False
    scale: float = 0.0  # 0 = 1/sqrt(head_dim)
    soft_cap: float = 0.0  # > 0: scores are cap * tanh(scores / cap)
    gaussian_prior: bool = False  # adds -(i-j)^2 / (2 sigma_h^2), sigma learned per head
    bias: bool = False
    two_way: bool = True  # positions of one two-way group (an image) see each other both ways, within the window
    shares_kv: bool = False  # keys and values are those of the layer before it, in the tail, that has some and the same window

    def __post_init__(self):
        _require(
            self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}, which must be at least 1",
        )
        _require(self.position in ("rope", "none", "sinusoidal"), f"position {self.position!r} must be 'rope', 'none' or 'sinusoidal'")
        _require(0 < self.rope_fraction <= 1, f"rope_fraction {self.rope_fraction} must be in (0, 1]")
        _require(self.window >= 0, f"window {self.window} must be 0 (global) or positive")
        _require(
            int(self.head_dim * self.rope_fraction) % 2 == 0, f"head_dim {self.head_dim} x rope_fraction {self.rope_fraction} must be even"
        )

    @property
    def kv_shape(self) -> tuple[int, int]:
        return self.num_kv_heads, self.head_dim


@dataclass(frozen=True)
class FeedForwardConfig:
    hidden: int
    activation: Activation = "gelu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self):
        _require_activation(self.activation)


@dataclass(frozen=True)
class ExpertsConfig:
    """Top-k routed experts; the layer's dense feed-forward, if it has one, runs in parallel with them."""

    num_experts: int
    top_k: int
    hidden: int
    activation: Activation = "gelu"
    separate: bool = False  # as in Gemma 4: dense and routed branch have norms of their own, the router a norm and a scale per expert

    def __post_init__(self):
        _require_activation(self.activation)
        _require(1 <= self.top_k <= self.num_experts, f"top_k {self.top_k} must be between 1 and num_experts {self.num_experts}")


@dataclass(frozen=True)
class LayerConfig:
    attention: AttentionConfig
    feed_forward: FeedForwardConfig | None
    experts: ExpertsConfig | None = None
    parallel: bool = False  # y = x + attention(norm x) + feed_forward(norm x)
    cross_attention: AttentionConfig | None = None  # text queries over the row's soft tokens, gate starts at tanh(0) = 0
    layer_scale: bool = False  # one learned scalar multiplies the layer's output

    def __post_init__(self):
        _require(self.feed_forward is not None or self.experts is not None, "a layer needs feed_forward, experts or both")
        cross = self.cross_attention
        without = cross is None or not (cross.window or cross.log_n_native or cross.gaussian_prior)
        _require(without, "cross_attention sees all soft tokens without positions: leave out window, log_n_native and gaussian_prior")


@dataclass(frozen=True)
class FrameTower:
    """Nothing: the features themselves are projected (raw sound of Gemma 4 12B)."""

    kind: Literal["frames"] = "frames"


@dataclass(frozen=True)
class PatchTower:
    """Norm -> linear -> norm, + row and column, norm: whole patches without an encoder (images of Gemma 4 12B)."""

    width: int
    positions: int  # rows of the tables of rows and columns
    kind: Literal["patches"] = "patches"


@dataclass(frozen=True)
class VisionTower:
    """A transformer over the patches of each image, then the mean over pool x pool of them (images of the other Gemma 4)."""

    patch: int  # side in pixels; a soft token has pool x pool of them
    pool: int
    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float
    positions: int
    standardise: bool = False  # with learned means and deviations
    clipped: bool = False  # inputs and outputs of its linear maps are kept within learned bounds
    kind: Literal["vision"] = "vision"


@dataclass(frozen=True)
class AudioTower:
    """A Conformer over log-mel frames, four a soft token (sound of Gemma 4 E2B and E4B; Gulati et al. 2020, Zhang et al. 2023)."""

    mels: int
    channels: tuple[int, int]  # of the two convolutions that halve time and frequency
    width: int
    num_layers: int
    num_heads: int
    kernel: int  # of the convolution over time in each block
    chunk: int
    left: int  # a frame sees itself and left - 2 before it; with `chunk` it sets how distances are embedded
    logit_cap: float
    residual_weight: float
    out: int
    clipped: bool = True
    kind: Literal["conformer"] = "conformer"


Tower = FrameTower | PatchTower | VisionTower | AudioTower
_TOWERS = {cls.kind: cls for cls in (FrameTower, PatchTower, VisionTower, AudioTower)}


@dataclass(frozen=True)
class SoftInputConfig:
    """How raw features of one modality become tokens of width D: norm -> stem -> linear (or a two-layer MLP) -> norm -> + 2-D position.

    `stem` is a small convolutional network inside each patch, for models that see too few pictures to learn the same edge at every
    place of a patch: a tuple of (kernel, stride, channels), each followed by a squared ReLU.
    """

    name: Literal["image", "audio", "video"]
    features: int  # F, as tokens/config.py computes it
    hidden: int = 0  # 0 = one linear map; h > 0: gelu MLP with h hidden units
    grid: int = 0  # g > 0: learned tables of g rows and g columns are added
    stem: tuple[tuple[int, int, int], ...] = ()  # needs features = channels x side x side with the channels last
    in_channels: int = 3  # of a pixel, for the stem
    colour_grid: int = 0  # g > 0: the stem sees form without colour (embedders.form); colours enter as means over a g x g grid
    shares: str = ""  # another input whose embedder reads the still pixels; `stem` then sees their change since the frame before
    in_norm: bool = True  # normalise the raw features of each token; off where tokens/ has standardised the whole picture
    tower: Tower | None = None  # instead of all that: features -> tower -> norm without a scale -> linear

    def __post_init__(self):
        if self.tower is not None:
            plain = SoftInputConfig(self.name, self.features)
            _require(dataclasses.replace(self, tower=None) == plain, f"{self.name}: a tower replaces all other settings of the embedder")
            return
        _require(not (self.stem and self.in_norm), f"{self.name}: a stem reads standardised pixels, so in_norm must be off")
        alone = not self.shares or not (
            self.in_norm or self.hidden or self.grid or self.colour_grid or bool(self.stem) != (self.in_channels > 3)
        )
        _require(
            alone, f"{self.name}: what shares {self.shares!r} has a stem if there is a change to see (in_channels 6), and nothing else"
        )
        side = self.stem_sides()[0] if self.stem else 0
        fits = not self.colour_grid or (side > 0 and side % self.colour_grid == 0 and self.in_channels % 3 == 0)
        _require(fits, f"{self.name}: a colour_grid of {self.colour_grid} needs a stem and a patch side that it divides")

    @property
    def stem_channels(self) -> int:
        """Channels that the stem reads."""
        if self.shares:
            return self.in_channels // 3 - 1
        return self.in_channels // 3 if self.colour_grid else self.in_channels

    def stem_sides(self) -> tuple[int, ...]:
        """Side in pixels of a patch, then of each map of the stem. Raises ValueError if the shapes do not fit."""
        if not self.stem:
            return ()
        side = math.isqrt(self.features // self.in_channels)
        _require(side * side * self.in_channels == self.features, f"{self.name}: {self.features} features are not a square patch")
        sides = [side]
        for kernel, stride, _ in self.stem:
            _require(kernel <= sides[-1], f"{self.name}: a kernel of {kernel} does not fit a map of side {sides[-1]}")
            sides.append((sides[-1] - kernel) // stride + 1)
        return tuple(sides)


@dataclass(frozen=True)
class ModelConfig:
    name: str
    vocab_size: int
    d_model: int
    pattern: tuple[LayerConfig, ...]
    num_groups: int
    tail: tuple[LayerConfig, ...] = ()
    soft_inputs: tuple[SoftInputConfig, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    post_norm: bool = True  # with pre_norm: on the sub-block's output; without: after the residual sum, as in 2017
    embed_scale: bool = True  # embedding * sqrt(d_model)
    tied: bool = True
    logit_soft_cap: float = 0.0
    per_layer_width: int = 0  # P > 0: each layer reads an embedding of the token of its own, P wide
    per_layer_vocab: int = 0  # ids that have one; soft tokens take that of id 0
    max_positions: int = 32_768  # size the model is meant for; sinusoids and RoPE need no table

    def __post_init__(self):
        _require(self.vocab_size > 0 and self.d_model > 0 and self.num_groups >= 0, "vocab_size, d_model must be positive")
        _require(self.num_groups == 0 or len(self.pattern) > 0, "pattern is empty but num_groups is not 0")
        _require(self.norm in ("rms", "layer"), f"norm {self.norm!r} must be 'rms' or 'layer'")
        _require(self.pre_norm or self.post_norm, "pre_norm and post_norm cannot both be off")
        _require((self.per_layer_width > 0) == (self.per_layer_vocab > 0), "per_layer_width and per_layer_vocab go together")
        _require(not any(x.attention.shares_kv for x in self.pattern), "shares_kv: only layers of the tail can share keys and values")
        for i, layer in enumerate(self.tail):
            owners = [x.attention for x in self.tail[:i] if not x.attention.shares_kv and x.attention.window == layer.attention.window]
            fits = not layer.attention.shares_kv or (owners and owners[-1].kv_shape == layer.attention.kv_shape)
            _require(bool(fits), f"tail layer {i} shares keys and values, but none before it has such of its window and shape")
        names = [s.name for s in self.soft_inputs]
        _require(len(set(names)) == len(names), f"soft_inputs names must differ, got {names}")
        for s in self.soft_inputs:
            lent = [t.features * s.in_channels for t in self.soft_inputs if t.name == s.shares and not t.shares]
            fits = not s.shares or lent == [s.features * 3]
            _require(fits, f"{s.name}: shares {s.shares!r}, which must be a soft input of the same patch side that shares nothing itself")

    @property
    def num_layers(self) -> int:
        return self.num_groups * len(self.pattern) + len(self.tail)

    @property
    def longest(self) -> int:
        """Tokens of a text that the model can be asked about: `max_positions`, or four times as many where no layer that sees all of them
        knows their positions (such models find a needle far beyond the length that they were trained at; see the lab notes)."""
        seen = [layer.attention for layer in self.layers if not layer.attention.window]
        return self.max_positions * (4 if seen and all(a.position == "none" for a in seen) else 1)

    @property
    def layers(self) -> tuple[LayerConfig, ...]:
        return self.pattern * self.num_groups + self.tail

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of to_json. Raises ValueError naming an unknown field."""
        data = dict(data)
        for key in ("pattern", "tail"):
            data[key] = tuple(_layer(x) for x in data.get(key, ()))
        data["soft_inputs"] = tuple(_soft_input(x) for x in data.get("soft_inputs", ()))
        return _build(cls, data)


def _build(cls, data: dict[str, Any]):
    fields, no = dataclasses.fields(cls), dataclasses.MISSING
    unknown = set(data) - {f.name for f in fields}
    _require(not unknown, f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    missing = [f.name for f in fields if f.default is no and f.default_factory is no and f.name not in data]
    _require(not missing, f"{cls.__name__} lacks {', '.join(missing)}")
    return cls(**data)


def _soft_input(data: dict[str, Any]) -> SoftInputConfig:
    tower = data.get("tower")
    if tower is not None:
        _require(tower.get("kind") in _TOWERS, f"tower kind {tower.get('kind')!r} must be one of {', '.join(_TOWERS)}")
        lists = {name: tuple(value) for name, value in tower.items() if isinstance(value, list)}
        tower = _build(_TOWERS[tower["kind"]], tower | lists)
    return _build(SoftInputConfig, data | {"stem": tuple(tuple(x) for x in data.get("stem", ())), "tower": tower})


def _layer(data: dict[str, Any]) -> LayerConfig:
    data = dict(data)
    kinds = dict(attention=AttentionConfig, cross_attention=AttentionConfig, feed_forward=FeedForwardConfig, experts=ExpertsConfig)
    for key, cls in kinds.items():
        if data.get(key) is not None:
            data[key] = _build(cls, data[key])
    return _build(LayerConfig, data)
