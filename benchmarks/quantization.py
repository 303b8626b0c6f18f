"""What fewer bits cost a model: bytes on disk, loss and accuracy on the world's held-out documents, method by method.

    .venv/bin/python benchmarks/quantization.py runs/quickstart/model --aware runs/aware/model --items 320

Losses are nats a token of text and a digit of a drawing's code, over documents that no run reads; every model reads the same ones. The
folder in bfloat16 is what `pollux.load(folder, dtype="bfloat16").save()` writes.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import pollux
from pollux.commands.memory import keep_freed_memory
from pollux.commands.quantize import calibration
from pollux.compilation import use_compilation_cache
from pollux.data.source import WorldSource, sample
from pollux.data.world import World
from pollux.evaluate.world import evaluate
from pollux.generate.decode import cache_dtype
from pollux.generate.model import Model
from pollux.model import decoder
from pollux.shrink.quantize import quantize
from pollux.tokens.interleave import encode
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Batch, Modality
from pollux.train.objective import cross_entropy

TASKS = ("picture", "clip", "speech", "draw", "conversation", "story")


def batches(model: Model, documents: int, rows: int = 4) -> list[Batch]:
    """Held-out documents of every task, packed."""
    assert model.vocabulary is not None
    world = World()
    sources = [WorldSource(world, task).held_out() for task in TASKS]
    sequences = [
        encode(document, model.vocabulary, model.tokens_config, model.codec)
        for document in itertools.chain.from_iterable(sample(source, documents) for source in sources)
    ]
    most: Counter[str] = Counter()
    for sequence in sequences:
        most |= sizes(sequence)
    room = {str(soft.name): rows * most[soft.name] for soft in model.config.soft_inputs}
    packer, made = Packer(rows, most["tokens"], most["targets"], room, model.tokens_config), []
    for sequence in sequences:
        if not packer.add(sequence):
            made.append(packer.take())
            packer.add(sequence)
    return [*made, packer.take()]


@functools.partial(jax.jit, static_argnames=("config",))
def _sums(params, config, batch: Batch):
    hidden = decoder.hidden(params, config, batch.inputs, dtype=cache_dtype(params)).hidden
    predicting = jnp.take_along_axis(hidden, batch.targets.index[..., None], axis=1)
    nll, _ = cross_entropy(decoder.logits(params, config, predicting), batch.targets.ids)
    draw = batch.targets.modality == Modality.DRAW
    weights = [batch.targets.weight * chosen for chosen in (~draw, draw)]
    return jnp.stack([jnp.sum(nll * weight) for weight in weights]), jnp.stack([jnp.sum(weight) for weight in weights])


def loss(model: Model, read: list[Batch]) -> np.ndarray:
    """Of text and of drawings."""
    sums = [jax.device_get(_sums(model.params, model.config, batch)) for batch in read]
    total, weight = (np.sum(part, 0) for part in zip(*sums, strict=True))
    return total / np.maximum(weight, 1)


def main(folder: tyro.conf.Positional[Path], /, aware: Path | None = None, items: int = 0, documents: int = 200) -> None:
    """Compare a model with its quantised forms.

    Args:
        folder: Model folder.
        aware: Model folder that recipes/quantization_aware.py made of it.
        items: Items of each task whose accuracy is asked; 0 leaves accuracies out.
        documents: Documents of each task that the losses are taken over.
    """
    keep_freed_memory()
    use_compilation_cache()
    model = pollux.load(folder)
    read, seen = batches(model, documents), list(calibration(model, None, 512))
    models = {
        "as trained": model,
        "bfloat16": pollux.load(folder, dtype="bfloat16"),
        "8 bits, nearest": quantize(model, 8, "nearest"),
        "4 bits, nearest": quantize(model, 4, "nearest"),
        "4 bits, gptq": quantize(model, 4, "gptq", seen, lambda line: None),
    }
    if aware:
        models["4 bits, trained for them"] = quantize(pollux.load(aware), 4, "nearest")
    for name, one in models.items():
        with tempfile.TemporaryDirectory() as path:
            one.save(path)
            size = sum(file.stat().st_size for file in Path(path).iterdir())
        text, draw = loss(one, read)
        print(f"{name}: {size:,} bytes, text {text:.4f}, draw {draw:.4f}", flush=True)
        if items and name != "bfloat16":
            evaluate(one, World(), items=items)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
