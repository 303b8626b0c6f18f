"""Decoding and prefill of a 604 M parameter decoder at batch 1 on this machine's CPU: 4-bit pollux beside llama.cpp and transformers.

    .venv/bin/python benchmarks/decoding.py --llama PYTHON --write

PYTHON is an interpreter with llama-cpp-python, which builds for minutes; without it llama.cpp is left out. All models have the same
matrices (16 layers, width 1536, 12 heads and 4 kv-heads of 128, gated feed-forward of 6144, 32,768 ids, tied) with random weights:
Q4_0 in llama.cpp, bfloat16 in transformers. Each runs in a process of its own with two threads; they take turns, and medians over
rounds count. The bandwidth is that of reading a large array with as many threads between the rounds.
`--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY = 16, 1536, 12, 4, 128, 6144, 32_768
PROMPT, STEPS, CONTEXT = 128, 64, 512  # tokens before decoding, tokens decoded, tokens of a prefill
THREADS = 2


@dataclass(frozen=True)
class Settings:
    llama: str = ""  # interpreter with llama-cpp-python
    rounds: int = 5
    transformers: bool = True
    write: bool = False  # put the table into docs/performance.md
    worker: Literal["", "pollux", "llama.cpp", "transformers"] = ""  # what the program starts itself for each contender
    file: str = ""  # the GGUF file of the worker llama.cpp


class Pollux:
    """This project's engine functions on packed random codes."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        from pollux.commands.memory import keep_freed_memory
        from pollux.generate.decode import prefill
        from pollux.generate.sampler import most_probable
        from pollux.model import folder, params
        from pollux.model.cache import empty
        from pollux.model.config import ModelConfig
        from pollux.model.decoder import hidden, logits
        from pollux.model.family import pattern
        from pollux.model.quantized import Quantized, packed_shape
        from pollux.model.rounding import matrices
        from pollux.model.tensors import aligned
        from pollux.tokens.sequence import Inputs

        keep_freed_memory()  # as the command line does
        self.jax = jax
        block = pattern(HEADS, KV_HEADS, HEAD, HIDDEN, local=3, window=1024)
        config = ModelConfig("half", VOCABULARY, WIDTH, block, num_groups=LAYERS // 4)
        random, chosen = np.random.default_rng(0), matrices(config)

        def make(path, spec):
            name = folder.tensor_name(path)
            if name not in chosen:
                return jnp.full(spec.shape, spec.init, jnp.float32)
            inputs, outputs = params.matrix(spec)
            packed = aligned((*spec.shape[:-2], *packed_shape(inputs, outputs, 4)), np.uint8)  # as the weights of a folder
            packed[...] = random.integers(0, 256, packed.shape, np.uint8)
            packed[..., -32:] = np.full(16, 0.2 * inputs**-0.5, np.float16).view(np.uint8)
            return Quantized(jax.device_put(packed), inputs, outputs)

        self.params = jax.tree_util.tree_map_with_path(make, params.declare(config), is_leaf=params.is_spec)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

        def inputs(ids, position):
            one = jnp.ones_like(ids)
            return Inputs(ids, position, one, 0 * one, 0 * one, {})

        @functools.partial(jax.jit, donate_argnames=("cache",))
        def steps(params, cache, token, position):
            def step(_, carry):
                cache, token, position = carry
                out = hidden(params, config, inputs(token[:, None], position[:, None]), cache)
                return out.cache, most_probable(logits(params, config, out.hidden[:, 0])), position + 1

            return jax.lax.fori_loop(0, 16, step, (cache, token, position))

        def read(length: int, slots: int):
            ids = jnp.asarray(random.integers(0, VOCABULARY, (1, length)), jnp.int32)
            return prefill(self.params, config, inputs(ids, jnp.arange(length)[None]), empty(config, 1, slots))

        self.read, self.steps = read, steps

    def decode(self) -> float:
        state = (self.read(PROMPT, 256), np.array([5], np.int32), np.array([PROMPT], np.int32))
        self.jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(STEPS // 16):
            state = self.steps(self.params, *state)
        self.jax.block_until_ready(state)
        return time.perf_counter() - start

    def prefill(self) -> float:
        start = time.perf_counter()
        self.jax.block_until_ready(self.read(CONTEXT, CONTEXT))
        return time.perf_counter() - start


class Llama:
    """llama.cpp through its C functions, as llama-bench does: batches of 512 for the prompt, of 1 for decoding."""

    def __init__(self, file: str) -> None:
        import llama_cpp

        self.bytes = os.path.getsize(file)
        self.llm = llama_cpp.Llama(file, n_ctx=1024, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)

    def _read(self, length: int) -> None:
        self.llm.reset()
        self.llm.eval([int(i) for i in np.random.default_rng(0).integers(0, VOCABULARY, length)])

    def decode(self) -> float:
        self._read(PROMPT)
        start = time.perf_counter()
        for token in range(STEPS):
            self.llm.eval([token + 5])
        return time.perf_counter() - start

    def prefill(self) -> float:
        start = time.perf_counter()
        self._read(CONTEXT)
        return time.perf_counter() - start


class Transformers:
    """transformers' Llama in bfloat16."""

    def __init__(self) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch = torch
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, head_dim=HEAD, tie_word_embeddings=True, max_position_embeddings=4096,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        self.bytes = sum(p.nbytes for p in self.model.parameters())

    def _ids(self, length: int):
        return self.torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (1, length)))

    def decode(self) -> float:
        out = self.model(self._ids(PROMPT), use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(STEPS):
            out = self.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - start

    def prefill(self) -> float:
        start = time.perf_counter()
        self.model(self._ids(CONTEXT), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start


def write_gguf(file: str) -> None:
    """A llama model of random Q4_0 blocks."""
    import gguf

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, inputs: int, outputs: int) -> None:
        blocks = random.integers(0, 256, (outputs, inputs // 32, 18), np.uint8)
        blocks[..., :2] = np.array([0.2 * inputs**-0.5], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(outputs, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    matrix("token_embd.weight", WIDTH, VOCABULARY)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
        matrix(f"blk.{i}.attn_q.weight", WIDTH, HEADS * HEAD)
        matrix(f"blk.{i}.attn_k.weight", WIDTH, KV_HEADS * HEAD)
        matrix(f"blk.{i}.attn_v.weight", WIDTH, KV_HEADS * HEAD)
        matrix(f"blk.{i}.attn_output.weight", HEADS * HEAD, WIDTH)
        matrix(f"blk.{i}.ffn_gate.weight", WIDTH, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", WIDTH, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def work(name: str, file: str) -> None:
    """Answer "decode" and "prefill" on standard input with seconds."""
    contender = {"pollux": Pollux, "llama.cpp": lambda: Llama(file), "transformers": Transformers}[name]()
    contender.decode()
    contender.prefill()
    print(contender.bytes, flush=True)
    for line in sys.stdin:
        print(getattr(contender, line.strip())(), flush=True)


def bandwidth() -> float:
    """Bytes a second that `THREADS` threads read, the best of a few passes over 512 MB."""
    parts = np.array_split(np.ones(2**26, np.uint64), THREADS)
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=part.max) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "half.gguf")
        contenders = {"pollux": sys.executable}
        if settings.llama:
            write_gguf(file)
            contenders["llama.cpp"] = settings.llama
        if settings.transformers:
            contenders["transformers"] = sys.executable
        workers = {
            name: subprocess.Popen(
                [python, __file__, "--worker", name, "--file", file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name, python in contenders.items()
        }

        def ask(name: str, job: str = "") -> float:
            worker = workers[name]
            assert worker.stdin and worker.stdout
            if job:
                print(job, file=worker.stdin, flush=True)
            return float(worker.stdout.readline())

        sizes = {name: ask(name) for name in contenders}
        speeds = [bandwidth()]
        times: dict[tuple[str, str], list[float]] = {(name, job): [] for name in contenders for job in ("decode", "prefill")}
        for _ in range(settings.rounds):
            for name, job in times:
                times[name, job].append(ask(name, job))
            speeds.append(bandwidth())
        for worker in workers.values():
            worker.terminate()
    table = report(sizes, {key: statistics.median(values) for key, values in times.items()}, statistics.median(speeds))
    print(table)
    if settings.write:
        page = PAGE.read_text()
        PAGE.write_text(
            re.sub(r"<!-- decoding -->.*<!-- /decoding -->", f"<!-- decoding -->\n{table}\n<!-- /decoding -->", page, flags=re.S)
        )


def report(sizes: dict[str, float], seconds: dict[tuple[str, str], float], speed: float) -> str:
    """The table in Markdown."""
    title = f"{datetime.date.today()}, {platform.machine()} with AVX-512, {THREADS} threads, reading memory at {speed / 1e9:.1f} GB/s."
    lines = [title, "", "| | decode, tokens/s | share of bandwidth | prefill of 512, tokens/s | weights |", "|---|---|---|---|---|"]
    for name, size in sizes.items():
        step = seconds[name, "decode"] / STEPS
        prefill = CONTEXT / seconds[name, "prefill"]
        lines.append(f"| {name} | {1 / step:.1f} | {size / step / speed:.0%} | {prefill:.0f} | {size / 1e6:,.0f} MB |")
    others = [name for name in sizes if name != "pollux"]
    if "llama.cpp" in others:
        lines += ["", f"Decoding: {seconds['llama.cpp', 'decode'] / seconds['pollux', 'decode']:.2f} x llama.cpp."]
    if others:
        best = min(others, key=lambda name: seconds[name, "prefill"])
        lines += [f"Prefill: {seconds[best, 'prefill'] / seconds['pollux', 'prefill']:.2f} x {best}, the faster of the others."]
    return "\n".join(lines)


if __name__ == "__main__":
    if "--worker" in sys.argv:  # not through tyro, which the interpreter with llama.cpp need not have
        work(sys.argv[sys.argv.index("--worker") + 1], sys.argv[sys.argv.index("--file") + 1])
    else:
        import tyro

        main(tyro.cli(Settings, description=__doc__))
