"""report.html: what a model got right, next to what guessing gets, and a few items with their pictures and answers.

One file without scripts or links, so that it can be mailed; it follows the reader's light or dark setting.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pollux.content import Image, Part, Text
from pollux.generate.markup import show

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2430; --soft: #5c6675; --line: #dde2ea; --card: #fff; --ground: #f5f7fa; --bar: #3d6fd6; --good: #1b8a4c; --bad: #c23b32;
}
@media (prefers-color-scheme: dark) { :root {
  --ink: #e7ebf2; --soft: #9aa5b6; --line: #303947; --card: #1b222d; --ground: #12171f; --bar: #6c9bff; --good: #4fc983; --bad: #ff7d72;
} }
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 68rem; padding: 2rem 1.2rem 4rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--ground);
}
h1 { margin: 0; font-size: 1.7rem }
h2 { margin: 2.4rem 0 .8rem; font-size: 1.15rem }
p { color: var(--soft); margin: .3rem 0 0 }
.row { display: grid; grid-template-columns: min(13rem, 34%) 1fr 3.5rem; gap: .8rem; align-items: center; padding: .22rem 0 }
.track { position: relative; height: .8rem; border-radius: .4rem; background: var(--line) }
.fill { height: 100%; border-radius: .4rem; background: var(--bar) }
.chance { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: var(--ink) }
.value { text-align: right; font-variant-numeric: tabular-nums }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .9rem; overflow-wrap: anywhere }
.pictures, .strip { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .5rem }
img { height: 8rem; border-radius: .35rem; image-rendering: pixelated } .strip img { height: 3.6rem } audio { width: 100% }
.right { color: var(--good); font-weight: 600 } .wrong { color: var(--bad); font-weight: 600 } .truth { color: var(--soft) }
"""


@dataclass(frozen=True)
class Bar:
    """One figure beside its chance level, both 0..1."""

    name: str
    value: float
    chance: float = 0.0


@dataclass(frozen=True)
class Example:
    """One judged item: what the model was given and what it said, with any pictures that it drew."""

    task: str
    prompt: tuple[Part, ...]
    expected: str
    answer: str
    right: bool
    drawn: tuple[Any, ...] = ()  # PIL images


def write(folder: Path, report: Mapping[str, Any], bars: Mapping[str, Sequence[Bar]], examples: Sequence[Example]) -> None:
    """Write report.json (the plain dict) and report.html (titled groups of bars, then the examples by task) into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.html").write_text(page(report, bars, examples), encoding="utf-8")


def page(report: Mapping[str, Any], bars: Mapping[str, Sequence[Bar]], examples: Sequence[Example]) -> str:
    """The HTML text of a report."""
    minutes = f" trained for {report['minutes']:.1f} minutes" if report.get("minutes") is not None else ""
    body = [
        "<h1>What the model learned</h1>",
        f"<p>{report['parameters']:,} parameters{minutes}; judged on items that training never showed.</p>",
    ]
    for title, group in bars.items():
        body += [f"<h2>{html.escape(title)}</h2>", *map(_bar, group)]
    body.append("<p>The upright mark is what guessing gets.</p>")
    for task in dict.fromkeys(example.task for example in examples):
        cards = "".join(_card(example) for example in examples if example.task == task)
        body.append(f'<h2>{html.escape(task)}</h2><div class="cards">{cards}</div>')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>pollux report</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _bar(bar: Bar) -> str:
    width, mark = (100 * min(max(share, 0.0), 1.0) for share in (bar.value, bar.chance))
    track = (
        f'<div class="track"><div class="fill" style="width:{width:.1f}%"></div><div class="chance" style="left:{mark:.1f}%"></div></div>'
    )
    return f'<div class="row"><div>{html.escape(bar.name)}</div>{track}<div class="value">{bar.value:.3f}</div></div>'


def _card(example: Example) -> str:
    words = " ".join(part.text for part in example.prompt if isinstance(part, Text))
    media = "".join(show(part) for part in example.prompt if not isinstance(part, Text))
    drawn = "".join(show(Image(picture)) for picture in example.drawn)
    mark, style = ("✓", "right") if example.right else ("✗", "wrong")
    lines = [f'<div class="pictures">{media}{drawn}</div>' if media or drawn else "", f"<div>{html.escape(words)}</div>"]
    lines.append(f'<div class="{style}">{mark} {html.escape(example.answer)}</div>')
    if not example.right and example.expected:
        lines.append(f'<div class="truth">right: {html.escape(example.expected)}</div>')
    return f'<div class="card">{"".join(lines)}</div>'
