"""OUT/report.html: a run on one page, curves drawn as inline SVG, what the finished model answers, and the config.

The page is one file without scripts or links, follows the reader's light or dark setting, and can be written at any time from
metrics.jsonl.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pollux.content import Text
from pollux.generate.markup import show
from pollux.model.params import count
from pollux.plain import leaves
from pollux.train import metrics
from pollux.train.config import TrainConfig
from pollux.train.metrics import HELD_OUT
from pollux.train.samples import Sample

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 190, 46, 22, 10, 12  # of a curve, in SVG units

TITLES = {
    "text": "Text loss, nats a target",
    "draw": "Image-code loss, nats a digit",
    "kl": "KL of teacher and student, nats a target",
    "own_kl": "The same on the student's own answers",
    "align": "InfoNCE, nats a pair",
    "loss": "Objective",
    "lm": "LM loss, nats a target",
    "z": "Mean log² Z",
    "balance": "Expert balance",
    "grad_norm": "Gradient norm before clipping",
    "rate_factor": "Learning-rate factor",
    "tokens_per_second": "Tokens a second",
    "flop_utilisation": "FLOP utilisation",
}

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1d21; --soft: #6b6e76; --line: #e3e4e8; --page: #fbfbfc; --card: #fff; --accent: #2f6bd8; --held: #c26a1b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e9eaee; --soft: #979ba5; --line: #2d3037; --page: #141518; --card: #1b1d21; --accent: #78a9ff; --held: #f0a35c;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 40px 24px 64px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; font-weight: 650; letter-spacing: -.01em; margin: 0; }
h2 { font-size: 17px; font-weight: 600; margin: 40px 0 14px; }
.lead { color: var(--soft); margin: 4px 0 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 16px; }
.samples { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; margin: 0; }
.card header { display: flex; justify-content: space-between; gap: 12px; font-size: 13px; color: var(--soft); }
.card header span { flex: 1; }
.card header b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.card header b.held { color: var(--held); }
.card p { margin: 8px 0 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.card small { display: block; margin-top: 12px; color: var(--soft); }
.card small:first-child { margin: 0; }
.card .expected { color: var(--soft); }
.card audio { width: 100%; margin-top: 8px; }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; }
.card img { width: 100%; max-width: 192px; image-rendering: pixelated; border-radius: 6px; margin-top: 8px; display: block; }
svg { width: 100%; height: auto; display: block; margin-top: 6px; font: 10px system-ui, sans-serif; fill: var(--soft); }
svg .axis { stroke: var(--line); fill: none; }
svg .curve { stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; fill: none; }
svg .point { fill: var(--accent); }
svg .held { stroke: var(--held); }
svg .held.point { fill: var(--held); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); white-space: nowrap; width: 1%; }
""".strip()


def write_report(out: Path, config: TrainConfig, samples: Sequence[Sample] = ()) -> None:
    """Write OUT/report.html from OUT/metrics.jsonl."""
    (out / "report.html").write_text(page(config, metrics.read(out), samples), encoding="utf-8")


def page(config: TrainConfig, lines: Sequence[dict[str, Any]], samples: Sequence[Sample] = ()) -> str:
    """The HTML of a run with the given logged lines."""
    name = html.escape(config.model.name)
    lead = f"{count(config.model) / 1e6:,.1f} M parameters"
    steps = [line for line in lines if "seconds" in line]
    if steps:
        lead += f" · step {steps[-1]['step']:,} · {steps[-1]['seconds'] / 60:.1f} min · {steps[-1]['tokens_per_second']:,.0f} tokens/s"
    names = [key for key in TITLES if any(line.get(key) for line in lines)]
    curves = [_curve(TITLES[key], _points(lines, key), _points(lines, HELD_OUT + key)) for key in names]
    parts = [f"<h1>{name}</h1>", f'<p class="lead">{lead}</p>', "<h2>Curves</h2>"]
    parts += ['<div class="grid">', *curves, "</div>"] if curves else ["<p>Nothing is logged yet.</p>"]
    if samples:
        parts += ["<h2>Samples</h2>", '<div class="grid samples">', *map(_sample, samples), "</div>"]
    rows = [f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>" for key, value in leaves(config.to_json())]
    parts += ["<h2>Config</h2>", "<table>", *rows, "</table>"]
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return "\n".join([f"{head}<title>{name}: training run</title><style>{STYLE}</style></head><body>", *parts, "</body></html>\n"])


def _points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), line[key]) for line in lines if key in line]


def _curve(title: str, points: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]] = ()) -> str:
    """One card: title, newest value, and the values over the steps, beside those on held-out documents."""
    steps, values = zip(*sorted([*points, *held_out]), strict=True)
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        width = WIDTH - LEFT - RIGHT
        return LEFT + width * ((step - steps[0]) / (steps[-1] - steps[0]) if steps[-1] > steps[0] else 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    marks = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for tick in ticks:
        marks.append(f'<path class="axis" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for step, anchor in ((steps[0], "start"), (steps[-1], "end"))[: 1 if len(steps) == 1 else 2]:
        marks.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {step:,.0f}</text>')
    newest = f"<b>{_short(points[-1][1])}</b>"
    for kind, line in (("curve", points), ("curve held", held_out)):
        if line:
            path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in line)
            marks.append(f'<path class="{kind}" d="M{path}"/>')
            marks.append(f'<circle class="{kind} point" cx="{x(line[-1][0]):.1f}" cy="{y(line[-1][1]):.1f}" r="2.6"/>')
    if held_out:
        newest += f'<b class="held">held out {_short(held_out[-1][1])}</b>'
    return f'<figure class="card"><header><span>{html.escape(title)}</span>{newest}</header>{"".join(marks)}</svg></figure>'


def nice_ticks(low: float, high: float, intervals: int = 4) -> list[float]:
    """At least two rising round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    exact = span / intervals
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= exact * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _sample(sample: Sample) -> str:
    named = {"prompt": sample.prompt, "answer": sample.answer or (Text("(nothing)"),), "expected": sample.expected}
    parts = [f'<small>{name}</small><div class="{name}">{"".join(map(show, shown))}</div>' for name, shown in named.items() if shown]
    return f'<figure class="card">{"".join(parts)}</figure>'
