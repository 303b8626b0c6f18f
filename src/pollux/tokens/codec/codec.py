"""Class Codec: a trained image codec, uint8 pictures <-> integer codes, in plain numpy so that the data loop can call it per image.

Folder: `codec.json` (CodecConfig) and `codec.safetensors` (the weights).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pollux.tokens.codec import fsq, model
from pollux.tokens.codec.config import CodecConfig


@dataclass(frozen=True)
class Quality:
    """How well a codec keeps a set of pictures, and how evenly it uses its digits."""

    psnr: float  # dB, from the mean squared error over all pictures
    perplexity: tuple[float, ...]  # of every digit: exp of the entropy of its values; at most `Codec.levels`


@dataclass(frozen=True)
class Codec:
    """Codes of an image are L = rows x columns patches in row-major order, each a form digit and a colour digit."""

    config: CodecConfig
    params: model.Params  # float32 numpy
    bits: int = 32  # of a weight on disk; 8: rounded, with a scale for each output

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.config.size

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each digit of a code has."""
        return self.config.digit_sizes

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, H, W, 3] -> codes int32 [B, L, 2]. Raises ValueError on another size or type."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (*self.size, 3):
            raise ValueError(
                f"the codec encodes uint8 pictures of shape [B, {self.size[0]}, {self.size[1]}, 3], got {images.dtype} {list(images.shape)}"
            )
        latents = model.latents(self.params, images.astype(np.float32) / 255, self.config)
        digits = [fsq.to_digit(fsq.quantise(z, levels), levels) for z, levels in zip(latents, self.config.levels, strict=True)]
        return np.stack(digits, -1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [B, L, 2] -> pictures uint8 [B, H, W, 3]. Raises ValueError on another shape or a digit out of range."""
        codes = np.asarray(codes)
        if codes.ndim != 3 or codes.shape[1:] != (self.config.num_codes, len(self.levels)):
            raise ValueError(f"the codec decodes codes of shape [B, {self.config.num_codes}, {len(self.levels)}], got {list(codes.shape)}")
        if (codes < 0).any() or (codes >= self.levels).any():
            raise ValueError(f"code digits must be at least 0 and below {self.levels}, got {codes.min((0, 1))} to {codes.max((0, 1))}")
        form, colour = (fsq.to_unit(fsq.from_digit(codes[..., i], levels), levels) for i, levels in enumerate(self.config.levels))
        pixels = model.paint(self.params, form, colour, self.config)
        return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)

    def quality(self, images: np.ndarray) -> Quality:
        """Encode and decode pictures uint8 [B, H, W, 3] and measure the loss."""
        codes = self.encode(images)
        error = np.mean((self.decode(codes).astype(np.float64) - images) ** 2)
        perplexity = []
        for i in range(len(self.levels)):
            share = np.unique(codes[..., i], return_counts=True)[1] / codes[..., i].size
            perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
        return Quality(psnr=float(10 * np.log10(255**2 / max(error, 1e-12))), perplexity=tuple(perplexity))

    def save(self, folder: str | Path) -> None:
        """Write codec.json and codec.safetensors into a folder, which is made if absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "codec.json").write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
        tensors: dict[str, np.ndarray] = {}
        for network, layers in self.params.items():
            for layer, parts in layers.items():
                prefix = f"{network}.{layer}"
                if self.bits == 8:
                    scale = np.maximum(np.abs(parts["weight"]).max(0), 1e-30) / np.float32(127)
                    tensors |= {f"{prefix}.scale": scale, f"{prefix}.weight": np.rint(parts["weight"] / scale).astype(np.int8)}
                else:
                    tensors[f"{prefix}.weight"] = np.ascontiguousarray(parts["weight"])
                tensors[f"{prefix}.bias"] = np.ascontiguousarray(parts["bias"])
        save_file(tensors, folder / "codec.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> Codec:
        """Read what `save` wrote. Raises ValueError if the folder holds no codec, or weights that do not fit its config."""
        folder = Path(folder)
        for name in ("codec.json", "codec.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no image codec: {name} is missing")
        try:
            config = CodecConfig.from_json(json.loads((folder / "codec.json").read_text()))
            tensors = load_file(folder / "codec.safetensors")
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{folder} holds a damaged image codec: {error}") from error
        params: model.Params = {}
        for network, sizes in model.widths(config).items():
            for i, (rows, columns) in enumerate(zip(sizes, sizes[1:], strict=False)):
                for name, shape in (("weight", (rows, columns)), ("bias", (columns,))):
                    key = f"{network}.{i}.{name}"
                    if key not in tensors or tensors[key].shape != shape:
                        found = tensors[key].shape if key in tensors else "nothing"
                        raise ValueError(f"{folder / 'codec.safetensors'}: {key} must have shape {shape}, found {found}")
                    scale = tensors.get(f"{network}.{i}.scale", np.float32(1)) if tensors[key].dtype == np.int8 else np.float32(1)
                    params.setdefault(network, {}).setdefault(str(i), {})[name] = tensors[key].astype(np.float32) * scale
        return cls(config, params, 8 if any(tensor.dtype == np.int8 for tensor in tensors.values()) else 32)
