import numpy as np
import pytest

from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary

TEXTS = ["a red circle is left of a blue star", "what is shown? two green squares", "draw it, 12 + 34 = 46", '{"name":"look"}'] * 4


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_bpe(TEXTS, 400), code_levels=PaletteCodec.levels)


class PaletteCodec:
    """A codec with 2 x 2 codes of two digits: the red and the green of each quarter of an 8 x 8 picture, in steps of 64."""

    levels = (4, 4)
    size = (8, 8)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels[:, ::4, ::4, :2] // 64).reshape(len(pixels), 4, 2).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        pixels = np.zeros((len(codes), 2, 2, 3), np.uint8)
        pixels[..., :2] = codes.reshape(-1, 2, 2, 2) * 64
        return pixels.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture
def codec() -> PaletteCodec:
    return PaletteCodec()
