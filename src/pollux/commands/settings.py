"""Flags that several verbs share: how the next token is chosen, and where a server keeps things."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Settings:
    """What is not given is taken from the model's generation_config.json."""

    max_output_tokens: int | None = None
    """Most tokens of an answer."""
    temperature: float | None = None
    """Randomness of the choice of tokens; 0 takes the most probable one."""
    top_p: float | None = None
    """Choose among the most probable tokens that make up this share."""
    top_k: int | None = None
    """Choose among this many most probable tokens; 0 means all."""
    min_p: float | None = None
    """Choose among tokens at least this many times as probable as the best."""
    seed: int | None = None
    """Seed of the random choice."""
    guidance: float | None = None
    """Strength of classifier-free guidance in drawings; 1 is none."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this text; may be given several times."""

    def given(self) -> dict[str, Any]:
        """The settings that were given, as keywords of Model.generate."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}


SamplingFlags = Annotated[Settings, tyro.conf.arg(name="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]  # the help says what holds without one
MaybeText = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
MaybeNumber = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Url = Annotated[str, tyro.conf.arg(metavar="URL", help_behavior_hint="")]
DATABASE: Url = os.environ.get("POLLUX_DATABASE", "")  # may have a password in it, which command lines and help would show to others


def data_folder() -> Path:
    """$POLLUX_DATA, or ~/.local/share/pollux."""
    return Path(os.environ.get("POLLUX_DATA") or Path.home() / ".local" / "share" / "pollux")
