"""The main job: a small model that captions, answers, transcribes, follows clips and draws, from nothing, on two cores.

    pollux quickstart --minutes 10

The time goes to, in order: a tokeniser and the spoken phrases (about 15 s), an image codec (a tenth, at most 90 s), the
decoder (most of it), the evaluation. Expected accuracies are in docs/lab-notes.md.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.data.world import World, WorldConfig, render, sample_scene, stream
from pollux.model.family import tiny
from pollux.recipes import trained_codec, trained_vocabulary
from pollux.tokens.codec import CodecConfig, CodecTraining, Progress
from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

# Nine patches a picture, which overlap a little; sounds take few tokens: a step's cost is its tokens. Sounds are read in one direction,
# so that a word is not heard together with the next one, which often follows it.
TOKENS = TokensConfig(
    ImageTokens(patch=20, stride=16, max_tokens=9, standardise=True),
    AudioTokens(mels=64, stack=8, max_tokens=128),
    VideoTokens(fps=2.0, max_frames=6, patch=20, stride=16, max_tokens=9, standardise=True),
)
WORLD = WorldConfig(captions=1, listings=1, questions=4, clip_questions=6)
# Rows as long as the longest clip; with the longest conversation in mind, slots that are nearly all used.
ROWS: dict[str, Any] = dict(rows=6, row_length=256, targets_per_row=144, soft_per_batch={"image": 90, "audio": 192, "video": 162})
WEIGHTS = {  # of documents; a clip has twice the tokens of a picture, a spoken phrase half as many
    "picture": 1.0,
    "draw": 0.65,
    "clip": 0.4,
    "speech": 0.75,
    "conversation": 0.12,
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
    tokenizer, vocabulary = trained_vocabulary(work / "tokenizer", lambda: World(WORLD).text_sample(4000), 640)
    training = CodecTraining(seconds=min(6 * minutes, 90))
    about = f"{WORLD.seed} {WORLD.drawing}"
    codec_folder, codec = trained_codec(work / "codec", lambda: drawings(WORLD), about, CodecConfig(), training, _print_progress)
    return TrainConfig(
        model=tiny(vocabulary.size + sum(codec.levels), TOKENS),
        tokens=TOKENS,
        data=DataConfig(
            tuple(SourceConfig("world", task, weight=weight) for task, weight in WEIGHTS.items()),
            world=world,
            prompt_dropout=0.1,  # for classifier-free guidance
        ),
        vocabulary=str(tokenizer),
        codec=str(codec_folder),
        **ROWS,
        minutes=max(0.6 * minutes, minutes - min(0.1 * minutes, 1.5) - 2.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, matrix_learning_rate=1e-2),
        schedule=ScheduleConfig(warmup=50, decay=0.5),
        ema=0.99,
        log_every=25,
        checkpoint_every=1000,
        keep_checkpoints=1,
    )


def drawings(world: WorldConfig, batch: int = 16):
    """Batches of pictures uint8 [batch, 48, 48, 3] without held-out pairs."""
    for step in itertools.count():
        scenes = (sample_scene(stream(world.seed, "codec", step, i), world.drawing, False) for i in range(batch))
        yield np.stack([render(scene) for scene in scenes])


def _print_progress(progress: Progress) -> None:
    if progress.step % 500 == 0:
        print(f"codec: step {progress.step}, {progress.done:.0%} of its time, PSNR {progress.psnr:.1f} dB", flush=True)
