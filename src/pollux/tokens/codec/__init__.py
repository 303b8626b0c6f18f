"""FSQ image codec: pictures <-> a grid of codes that become words of the decoder's vocabulary."""

from pollux.tokens.codec.codec import Codec, Quality
from pollux.tokens.codec.config import CodecConfig, CodecTraining
from pollux.tokens.codec.train import Progress, train

__all__ = ["Codec", "CodecConfig", "CodecTraining", "Progress", "Quality", "train"]
