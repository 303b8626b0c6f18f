"""`pollux model`: what a model is made of and what it costs, from a named size or from a folder."""

from __future__ import annotations

from pathlib import Path

import jax
import tyro

from pollux.model import family
from pollux.model.config import ModelConfig
from pollux.model.folder import hash_params, load_config, load_params, save
from pollux.model.params import count, count_by_part, flops_per_token, init, kv_bytes_per_token


def model(
    name: tyro.conf.Positional[str],
    /,
    hash: tyro.conf.FlagCreatePairsOff[bool] = False,
    random: Path | None = None,
    context: int | None = None,
    seed: int = 0,
) -> None:
    """Print the parameters by part, the FLOPs of a token and the cache bytes of a token of a model.

    Example: pollux model nano-1

    Example: pollux model runs/quickstart/model --hash

    Args:
        name: A named size (tiny, mini, nano-1, nano-2, flash, pro, ultra, textbook) or a model folder.
        hash: Print one hash of all weights of a folder instead.
        random: Write a model of this size with random weights to this folder instead.
        context: Tokens that a token sees when FLOPs are counted; the length the model is made for if not given.
        seed: Seed of the random weights.
    """
    if hash:
        _print_hash(name)
    elif random is not None:
        _write_random(name, random, seed)
    else:
        print(describe(_config(name), context))


def describe(config: ModelConfig, context: int | None = None) -> str:
    """The table of `pollux model`: parameters by part, forward FLOPs of a token at `context`, KV-cache bytes of a token in bf16."""
    context = context or config.max_positions
    total = count(config)
    lines = [f"{config.name}: {config.num_layers} layers, width {config.d_model}, {config.vocab_size:,} ids"]
    lines += [f"  {part:<16}{n:>18,}  {n / total:6.1%}" for part, n in count_by_part(config).items()]
    lines += [f"  {'parameters':<16}{total:>18,}"]
    lines += [f"FLOPs per token  {flops_per_token(config, context):,} forward at a context of {context:,} (training: 3 x)"]
    cache = kv_bytes_per_token(config)
    lines += [f"KV bytes per token  {cache['global']:,} in global layers, {cache['local']:,} in local layers up to their window (bf16)"]
    return "\n".join(lines)


def _config(name: str) -> ModelConfig:
    return load_config(name)[0] if Path(name).is_dir() else family.model(name)


def _print_hash(folder: str) -> None:
    print(hash_params(load_params(folder, load_config(folder)[0])))


def _write_random(name: str, folder: Path, seed: int) -> None:
    config = family.model(name)
    save(folder, init(config, jax.random.key(seed)), config)
    print(f"{folder}: {config.name} with {count(config):,} random weights and no tokeniser; it gives logits on ids")


def main(arguments: list[str]) -> None:
    """Entry of `pollux model`."""
    tyro.cli(model, prog="pollux model", args=arguments)
