"""Teach the quick start's model to draw films: six pictures in one answer, in which one object moves and then another.

    pollux train recipes/films.py --out runs/films --minutes 60

Goes on from the finished model of `pollux quickstart`, keeps its tokeniser and image codec, and reads on in the world with a share of
the documents, so that the model goes on seeing, hearing and drawing single pictures. After 1,350 steps the pictures of a film belong
together and things begin to move, but they are not yet those of the request: give it more, and see with `pollux.data.world.watch`.
"""

from pathlib import Path

from pollux.data.mixture import DataConfig, SourceConfig
from pollux.data.world import WorldConfig
from pollux.model.folder import load_config
from pollux.train.config import OptimizerConfig, ScheduleConfig, TrainConfig


def recipe(model: Path = Path("runs/quickstart/model"), minutes: float = 60.0, world: float = 0.2) -> TrainConfig:
    """A run of the decoder.

    Args:
        model: Folder of the model to go on from.
        minutes: Time for the run.
        world: Share of documents that are none of films.
    """
    config, tokens = load_config(model)
    shares = {"picture": 0.3, "draw": 0.5, "speech": 0.2}
    rest = tuple(SourceConfig("world", task, weight=round(world * share, 4)) for task, share in shares.items()) if world else ()
    return TrainConfig(
        model=config,
        tokens=tokens,
        data=DataConfig(
            (SourceConfig("world", "film", weight=round(1 - world, 4)), *rest),
            world=WorldConfig(captions=1, listings=1, questions=4),
            prompt_dropout=0.1,  # for guidance, and for films that go on from a picture without words
        ),
        vocabulary=str(model),
        codec=str(model),
        start=str(model),
        rows=3,
        row_length=512,
        targets_per_row=448,
        soft_per_batch={"image": 36, "audio": 128, "video": 0} if world else {},
        minutes=minutes,
        optimizer=OptimizerConfig(learning_rate=3e-3, matrix_learning_rate=1e-2),
        schedule=ScheduleConfig(warmup=30, decay=0.4),
        ema=0.99,
        log_every=25,
        checkpoint_every=0,
        keep_checkpoints=1,
        samples=0,
    )
