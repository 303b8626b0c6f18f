"""A few seconds of the whole way from the world's pictures, clips, speech and text to a model folder. It learns next to nothing.

pollux train recipes/smoke.py --out runs/smoke --steps 60 --checkpoint-every 5        half a minute on two cores
"""

from pathlib import Path

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.data.world import World, WorldConfig
from pollux.model.family import tiny
from pollux.recipes import trained_vocabulary
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.train.config import LossConfig, TrainConfig

RUNS = Path(__file__).resolve().parent.parent / "runs"


def recipe() -> TrainConfig:
    world = WorldConfig(speech_clips=32, align_share=0.5, cache=str(RUNS / "speech"))
    folder, vocabulary = trained_vocabulary(RUNS / "tokenizers" / "smoke", lambda: World(world).text_sample(2000), 512)
    tokens = TokensConfig(
        ImageTokens(max_tokens=9, standardise=True),
        AudioTokens(max_tokens=128),
        VideoTokens(fps=2.0, max_frames=6, max_tokens=9, standardise=True),
    )
    return TrainConfig(
        model=tiny(vocabulary.size, tokens),
        tokens=tokens,
        data=DataConfig(tuple(SourceConfig("world", task) for task in ("picture", "speech", "clip", "arithmetic", "story")), world=world),
        vocabulary=str(folder),
        rows=2,
        row_length=512,
        targets_per_row=256,
        soft_per_batch={"image": 27, "audio": 176, "video": 162},
        steps=60,
        loss=LossConfig(beta=0.1),
        ema=0.9,
        log_every=5,
        checkpoint_every=20,
    )
