"""The main job: a small model that captions, answers, transcribes, follows clips and draws, from nothing, on two cores.

    pollux quickstart --minutes 10

The time goes to, in order: a tokeniser and the spoken phrases (about 15 s), an image codec (a tenth, but at most about a minute), the
decoder (most of it), the evaluation. Expected accuracies are in docs/lab-notes.md.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.data.world import SceneConfig, World, WorldConfig, render, sample_scene, stream
from pollux.model.family import tiny
from pollux.recipes import trained_vocabulary
from pollux.tokens.codec import CodecConfig, CodecTraining, Progress
from pollux.tokens.codec import train as train_codec
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

# Nine patches a picture, which overlap a little; sounds take few tokens: a step's cost is its tokens. Sounds are read in one direction,
# so that a word is not heard together with the next one, which often follows it.
TOKENS = TokensConfig(
    ImageTokens(patch=20, stride=16, max_tokens=9, standardise=True),
    AudioTokens(mels=64, stack=8, max_tokens=128),
    VideoTokens(fps=2.0, max_frames=6, patch=20, stride=16, max_tokens=9, standardise=True),
)
WORLD = WorldConfig(
    drawing=SceneConfig(max_objects=2, jitter=0.5, rotation=5.0, contrast=0.0, noise=0.0),
    captions=1,
    listings=1,
    questions=4,
    clip_questions=6,
)
WEIGHTS = {  # of documents; a clip has twice the tokens of a picture, a spoken phrase half as many
    "picture": 1.0,
    "draw": 0.6,
    "clip": 0.4,
    "speech": 0.8,
    "conversation": 0.08,
    "spoken_question": 0.05,
    "arithmetic": 0.04,
    "story": 0.08,
}


def recipe(minutes: float = 10.0, work: Path = Path("runs/quickstart-work")) -> TrainConfig:
    """A run of the decoder that leaves time, within `minutes`, for what comes before and after it.

    Args:
        minutes: Time for everything.
        work: Folder that receives the tokeniser and the codec.
    """
    # A longer run hears more recordings instead of the same ones more often.
    world = dataclasses.replace(WORLD, speech_clips=max(WORLD.speech_clips, int(160 * minutes)))
    vocabulary = trained_vocabulary(work / "tokenizer", lambda: World(WORLD).text_sample(4000), 640)
    codec = train_codec(_drawings(WORLD), CodecConfig(), CodecTraining(seconds=6 * minutes), _print_progress)
    codec.save(work / "codec")
    return TrainConfig(
        model=tiny(vocabulary.size + sum(codec.levels), TOKENS),
        tokens=TOKENS,
        data=DataConfig(tuple(SourceConfig("world", task, weight=weight) for task, weight in WEIGHTS.items()), world=world),
        vocabulary=str(work / "tokenizer"),
        codec=str(work / "codec"),
        rows=6,
        row_length=256,
        targets_per_row=144,
        soft_per_batch={"image": 90, "audio": 192, "video": 162},
        minutes=max(0.6 * minutes, minutes - min(0.1 * minutes, 1.5) - 1.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, matrix_learning_rate=1e-2),
        schedule=ScheduleConfig(warmup=50, decay=0.5),
        ema=0.99,
        log_every=25,
        checkpoint_every=0,
    )


def _drawings(world: WorldConfig, batch: int = 16):
    """Batches of pictures uint8 [batch, 48, 48, 3] without held-out pairs."""
    for step in itertools.count():
        scenes = (sample_scene(stream(world.seed, "codec", step, i), world.drawing, False) for i in range(batch))
        yield np.stack([render(scene) for scene in scenes])


def _print_progress(progress: Progress) -> None:
    if progress.step % 500 == 0:
        print(f"codec: step {progress.step}, {progress.done:.0%} of its time, PSNR {progress.psnr:.1f} dB", flush=True)
