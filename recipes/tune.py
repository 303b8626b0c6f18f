"""Go on training a model, of pollux or of Gemma 4, on your own folder of text, pictures, recordings and conversations.

    pollux train recipes/tune.py --model gemma-4-E2B-it --folder my-folder --out runs/tuned --steps 500

All weights are trained, in float32: that takes sixteen bytes of memory a parameter with AdamW. Keep parts as they are with
`--optimizer.frozen embed soft.image`. With `--rank 8` they all stay as they are, in the dtype of their folder, and only low-rank adapters
beside them are trained (LoRA): add `--lora.targets attention feed_forward soft` for those of the media too.
"""

from pathlib import Path

from pollux.data.folder import FolderConfig
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.model.folder import load_config
from pollux.train.config import LoraConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def recipe(model: Path, folder: Path, rank: int = 0) -> TrainConfig:
    """A run that begins with the weights of a model.

    Args:
        model: Model folder to begin with.
        folder: What to train on.
        rank: Of the adapters that are trained beside frozen weights; 0 trains the weights themselves.
    """
    config, tokens = load_config(model)
    length = min(1024, config.max_positions)
    return TrainConfig(
        model=config,
        tokens=tokens,
        data=DataConfig((SourceConfig("folder", path=str(folder)),), folder=FolderConfig(held_out=0.05)),
        vocabulary=str(model),
        codec=str(model) if (model / "codec.json").is_file() else "",
        start=str(model),
        rows=2,
        row_length=length,
        targets_per_row=length,
        # Two pictures or sounds of full size; for clips, say, --row-length 4096 --soft-per-batch.video 2240 (32 frames of 70 tokens)
        soft_per_batch={
            soft.name: 0 if soft.name == "video" else min(length, 2 * getattr(tokens, soft.name).max_tokens) for soft in config.soft_inputs
        },
        steps=500,
        lora=LoraConfig(rank),
        optimizer=OptimizerConfig("adamw", learning_rate=2e-4 if rank else 1e-5),
        schedule=ScheduleConfig(warmup=20),
        checkpoint_every=100,
    )
