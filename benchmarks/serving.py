"""What the server does under load: many streams beside one, time between tokens, and what a warm context cache saves.

    .venv/bin/python benchmarks/serving.py runs/quickstart/model [--no-transformers]

Starts `pollux serve` with the model and speaks HTTP to it from this process, so that client and server share the machine. Its embedding
is made small first, which flattens the logits, so that answers are hardly ever shorter than they may be. Streams follow each other
without a pause, each with a prompt and a seed of its own, and ask for text, since a picture comes whole and not token by token. Tokens
are those of usageMetadata; the time between tokens is that between the chunks of a stream, since the tokens of a chunk come together.
One stream and many take turns, and medians of the rounds are compared.
Then transformers' generate with as many rows at once, for a random Llama with the width, depth, heads, feed-forward and vocabulary of the
model. Last, the time to the first chunk of a prompt of 4,000 tokens: new, and when all but its end is in a cachedContent.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tyro
from served import served

import pollux

STREAMS = 64
OUTPUT = 256  # tokens of an answer, at most
PROMPT = 4000  # tokens of the long prompt


@dataclass
class Load:
    """What some streams brought in a while."""

    tokens: int = 0
    answers: int = 0
    errors: int = 0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)  # seconds between chunks of a stream
    first: list[float] = field(default_factory=list)  # seconds to the first chunk

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Client:
    """The plainest client of the streaming route: one connection, one request after the other."""

    def __init__(self, url: str):
        self.url = url

    async def stream(self, path: str, body: dict) -> Iterator[tuple[float, dict]]:
        """(time, response) of every chunk."""
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(self.url).port, limit=1 << 24)
        try:
            data = json.dumps(body).encode()
            fields = "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}", "Connection: close"
            writer.write("\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""]).encode() + data)
            status = await reader.readline()
            while (await reader.readline()).strip():
                pass
            if b" 200 " not in status:
                raise RuntimeError(f"{status.decode().strip()}: {(await reader.read())[:300]!r}")
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    yield time.perf_counter(), json.loads(line[6:])
        finally:
            writer.close()


def question(number: int, **generation: object) -> dict:
    text = f"Tell me story {number} about a red ball and a green box."
    settings = {"temperature": 1.0, "seed": number, "maxOutputTokens": OUTPUT, "responseModalities": ["TEXT"]} | generation
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": settings}


async def load(client: Client, path: str, streams: int, seconds: float, seed: int) -> Load:
    """Streams that follow each other for so many seconds; only what arrives in that time counts."""
    found, end = Load(seconds=seconds), time.perf_counter() + seconds

    async def worker(number: int) -> None:
        while time.perf_counter() < end:
            number += streams
            begun, latest, counted = time.perf_counter(), 0.0, 0
            try:
                async for now, chunk in client.stream(path, question(number)):
                    if now > end:
                        return
                    if "error" in chunk:
                        raise RuntimeError(str(chunk["error"]))
                    if latest:
                        found.gaps.append(now - latest)
                    else:
                        found.first.append(now - begun)
                    tokens = chunk.get("usageMetadata", {}).get("candidatesTokenCount", counted)
                    found.tokens, counted, latest = found.tokens + tokens - counted, tokens, now
                found.answers += 1
            except (OSError, RuntimeError) as error:
                print(error, file=sys.stderr)
                found.errors += 1

    await asyncio.gather(*(worker(seed + i) for i in range(streams)))
    return found


def endless(folder: Path, to: Path) -> Path:
    """The model with logits so flat that it hardly ever ends a turn."""
    model = pollux.load(folder)
    model.params = model.params | {"embed": 0.05 * np.asarray(model.params["embed"])}
    model.save(to)
    return to


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def streams(client: Client, path: str, seconds: float, rounds: int) -> None:
    await load(client, path, STREAMS, 3, 0)
    one, many = [], []
    for number in range(rounds):
        one.append(await load(client, path, 1, seconds, 10_000 * (2 * number + 1)))
        many.append(await load(client, path, STREAMS, seconds, 10_000 * (2 * number + 2)))
    ratios = [b.rate / a.rate for a, b in zip(one, many, strict=True)]
    gaps = [gap for found in many for gap in found.gaps]
    median, late = statistics.median(gaps), percentile(gaps, 0.99)
    first = statistics.median(t for x in many for t in x.first)
    print(f"one stream: {statistics.median(x.rate for x in one):.0f} tokens/s")
    print(f"{STREAMS} streams: {statistics.median(x.rate for x in many):.0f} tokens/s, {statistics.median(ratios):.2f} x one stream")
    print(f"  between chunks: median {1e3 * median:.1f} ms, p99 {1e3 * late:.1f} ms, {late / median:.2f} x")
    print(f"  to the first chunk: median {1e3 * first:.0f} ms")
    print(f"  answers {sum(x.answers for x in many)}, errors {sum(x.errors for x in (*one, *many))}")


async def long_prompt(client: Client, rounds: int) -> None:
    """Time to the first chunk of a long prompt: new, and behind a cached context."""
    base = f"{client.url}/v1beta"

    def post(path: str, body: dict) -> dict:
        request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def text(number: int) -> str:
        words, made = f"story {number}: the small red ball is left of the large green box and above a blue star. ", ""
        while post("/models/model:countTokens", {"contents": [{"parts": [{"text": made}]}]})["totalTokens"] < PROMPT:
            made += words * 20
        return made

    async def first(body: dict) -> float:
        begun, settings = time.perf_counter(), {"generationConfig": {"maxOutputTokens": 16, "seed": 1}}
        at = [now async for now, _ in client.stream("/v1beta/models/model:streamGenerateContent?alt=sse", body | settings)]
        return at[0] - begun

    cold, warm = [], []
    for number in range(rounds):
        said, asked = {"role": "user", "parts": [{"text": text(number)}]}, {"role": "user", "parts": [{"text": "what is left of the box?"}]}
        cold.append(await first({"contents": [said, asked]}))
        other = {"role": "user", "parts": [{"text": text(1000 + number)}]}
        cache = post("/cachedContents", {"model": "models/model", "contents": [other]})
        warm.append(await first({"cachedContent": cache["name"], "contents": [asked]}))
    ratio = statistics.median(b / a for a, b in zip(cold, warm, strict=True))
    new, cached = statistics.median(cold), statistics.median(warm)
    print(f"first chunk behind {PROMPT} tokens: new {1e3 * new:.0f} ms, cached {1e3 * cached:.0f} ms, {ratio:.3f} x")


def transformers_rate(folder: Path, rows: int) -> float:
    """Tokens a second of transformers' generate for a random Llama of the same shape, all rows at once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())["model"]
    layer = config["pattern"][0]
    attention = layer["attention"]
    shape = LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["d_model"],
        intermediate_size=layer["feed_forward"]["hidden"],
        num_hidden_layers=config["num_groups"] * len(config["pattern"]) + len(config["tail"]),
        num_attention_heads=attention["num_heads"],
        num_key_value_heads=attention["num_kv_heads"],
        head_dim=attention["head_dim"],
        tie_word_embeddings=config["tied"],
        eos_token_id=None,
    )
    model = LlamaForCausalLM(shape).eval()
    ids = torch.randint(0, config["vocab_size"], (rows, 24))
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=8, do_sample=True, pad_token_id=0)
        begun = time.perf_counter()
        out = model.generate(ids, max_new_tokens=OUTPUT, do_sample=True, pad_token_id=0)
    return (out.shape[1] - 24) * rows / (time.perf_counter() - begun)


def main(folder: tyro.conf.Positional[Path], seconds: float = 8.0, rounds: int = 3, transformers: bool = True) -> None:
    """Load `pollux serve` and print what it does.

    Args:
        folder: Model folder.
        seconds: Of each round with one stream, and with many.
        rounds: Of each measurement; medians count.
        transformers: Measure transformers' generate beside it.
    """
    with tempfile.TemporaryDirectory() as name:
        made = endless(folder, Path(name) / "model")
        with served(made, "--name", "model", output=subprocess.DEVNULL) as url:
            client = Client(url)
            asyncio.run(streams(client, "/v1beta/models/model:streamGenerateContent?alt=sse", seconds, rounds))
            asyncio.run(long_prompt(client, 2 * rounds))
    if transformers:
        rate = statistics.median(transformers_rate(folder, STREAMS) for _ in range(rounds))
        print(f"transformers' generate, {STREAMS} rows at once: {rate:.0f} tokens/s")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
