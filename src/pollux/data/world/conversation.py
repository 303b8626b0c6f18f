"""Conversations of the world: two to four turns that mix media, the way a person uses `pollux chat`.

The user shows a picture and wants a caption or asks about it, comes back to it later, plays a recording, shows a clip, asks for a
drawing, in any order. What is shown and said is decided first; nothing is rendered before `contents`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pollux.content import Audio, Content, Image, Part, Text, Video
from pollux.data.world import clips, grammar
from pollux.data.world.clips import Clip
from pollux.data.world.grammar import Exchange
from pollux.data.world.render import render
from pollux.data.world.scene import Scene, SceneConfig, sample_scene
from pollux.data.world.speech import Utterance

# Kinds of turn, and the most tokens that one takes with its answer by the quick start's settings
LENGTHS = {"caption": 40, "question": 40, "follow_up": 28, "transcribe": 54, "draw": 98, "clip": 104, "clip_follow_up": 28}
FOLLOW_UPS = {"caption": "follow_up", "question": "follow_up", "clip": "clip_follow_up"}  # what can come back to this turn's medium
TURNS = (2, 4)
LEAST_ROOM = LENGTHS["clip"] + LENGTHS["question"]  # for two turns of any kinds
# Kinds of question of which one may give away another's answer
TOPICS = (
    {"colour", "shape", "exists", "before_after"},
    {"size", "count"},
    {"place", "left_of", "above"},
    {"direction"},
    {"first", "last", "before_after"},
)

Medium = Scene | Clip | Utterance
Hear = Callable[[np.random.Generator, bool, bool], tuple[Exchange, Utterance]]  # (rng, held_out, unseen) -> a request to transcribe


@dataclass(frozen=True)
class Turn:
    """What the user says and shows, and the right answer; of a drawing the answer is the picture of `medium`."""

    kind: str  # one of LENGTHS
    medium: Medium  # shown in this turn, or shown before and asked about again, or to be drawn
    exchange: Exchange


@dataclass(frozen=True)
class Conversation:
    turns: tuple[Turn, ...]

    @property
    def last(self) -> Turn:
        return self.turns[-1]

    @property
    def told(self) -> bool:
        """Whether turns before the last may have said in words what the last one asks about its medium."""
        before = [turn.exchange.kind for turn in self.turns[:-1] if turn.medium is self.last.medium]
        related = {kind for topic in TOPICS if self.last.exchange.kind in topic for kind in topic}
        return "caption" in before or any(kind in related for kind in before)


def sample_conversation(
    rng: np.random.Generator,
    picture: SceneConfig,
    drawing: SceneConfig,
    hear: Hear,
    room: int,
    last: str = "",
    held_out: bool = False,
    unseen: bool = False,
) -> Conversation:
    """A random conversation whose turns take at most `room` tokens, by LENGTHS; clips are silent.

    last: the kind of the last turn, for evaluation: then what it asks was not told before. held_out: the medium that it is about has a
    held-out pair; all others never do. unseen: it is asked in the phrasing that only evaluation uses.
    """
    while True:
        kinds = _kinds(rng, room)
        if not last:
            return _fill(rng, kinds, picture, drawing, hear, False, False)
        if kinds[-1] == last and not (conversation := _fill(rng, kinds, picture, drawing, hear, held_out, unseen)).told:
            return conversation


def contents(conversation: Conversation, voice: Callable[[Utterance], Audio]) -> tuple[Content, ...]:
    """User and model turns in order, all answers included. voice: how an utterance sounds."""
    result = []
    for turn in conversation.turns:
        request = Text(turn.exchange.prompt)
        answer: Part = Text(turn.exchange.answer)
        shown: tuple[Part, ...] = ()
        match turn.medium:
            case Scene() as scene if turn.kind == "draw":
                answer = Image(render(scene))
            case Scene() as scene if turn.kind in FOLLOW_UPS:
                shown = (Image(render(scene)),)
            case Clip() as clip if turn.kind in FOLLOW_UPS:
                shown = (Video(clips.render_clip(clip)),)
            case Utterance() as utterance:
                shown = (voice(utterance),)
        result += [Content("user", (*shown, request)), Content("model", (answer,))]
    return tuple(result)


def _kinds(rng: np.random.Generator, room: int) -> list[str]:
    """Kinds of turns that follow each other sensibly: a follow-up is about the newest picture or clip and never comes after a
    drawing, which it could mean as well; one drawing at most. Every second turn that can be a follow-up is one."""
    number = int(rng.integers(TURNS[0], TURNS[1] + 1))
    kinds: list[str] = []
    while len(kinds) < number:
        new = [k for k in LENGTHS if k not in FOLLOW_UPS.values() and not (k == "draw" and "draw" in kinds)]
        seen = _newest(kinds)
        options = [FOLLOW_UPS[kinds[seen]]] if seen is not None and rng.random() < 0.5 else new
        fitting = [k for k in options if sum(LENGTHS[t] for t in [*kinds, k]) <= room]
        if not fitting:
            assert len(kinds) >= TURNS[0], f"a room of {room} tokens is less than {LEAST_ROOM}"
            break
        kinds.append(fitting[rng.integers(len(fitting))])
    return kinds


def _newest(kinds: Sequence[str]) -> int | None:
    """The turn that showed the picture or clip that a follow-up is about; None if there is none or a drawing came after it."""
    visible = [i for i, kind in enumerate(kinds) if kind in FOLLOW_UPS or kind == "draw"]
    return visible[-1] if visible and kinds[visible[-1]] != "draw" else None


def _fill(
    rng: np.random.Generator, kinds: Sequence[str], picture: SceneConfig, drawing: SceneConfig, hear: Hear, held_out: bool, unseen: bool
) -> Conversation:
    """What is shown, asked and answered in turns of these kinds."""
    end = len(kinds) - 1
    judged = _newest(kinds) if kinds[end] in FOLLOW_UPS.values() else end  # the turn that shows what the last one is about
    turns: list[Turn] = []
    for i, kind in enumerate(kinds):
        new_pair, new_words = held_out and i == judged, unseen and i == end
        medium: Medium
        if kind == "transcribe":
            exchange, medium = hear(rng, new_pair, new_words)
        elif kind == "draw":
            medium = sample_scene(rng, drawing, new_pair)
            exchange = Exchange("draw", grammar.draw_request(rng, medium, new_words), grammar.describe(medium))
        elif kind == "caption":
            medium = sample_scene(rng, picture, new_pair)
            exchange = grammar.captions(rng, medium, 1, new_words)[0]
        else:
            if kind in FOLLOW_UPS.values():
                newest = _newest(kinds[:i])
                assert newest is not None
                medium = turns[newest].medium
            elif kind == "clip":
                medium = clips.sample_clip(rng, picture, new_pair, sound_share=0.0)
            else:
                medium = sample_scene(rng, picture, new_pair)
            assert not isinstance(medium, Utterance)
            asked = [turn.exchange.kind for turn in turns if turn.medium is medium]
            exchange = _ask(rng, medium, asked, new_words, held_out and i == end)
        turns.append(Turn(kind, medium, exchange))
    return Conversation(tuple(turns))


def _ask(rng: np.random.Generator, medium: Scene | Clip, asked: Sequence[str], unseen: bool, held_out: bool) -> Exchange:
    """A question of a kind that was not asked before."""
    every = clips.clip_kinds(medium) if isinstance(medium, Clip) else grammar.kinds_for(medium)
    kinds = [kind for kind in every if kind not in asked]
    kind = kinds[rng.integers(len(kinds))]
    return clips.ask_clip(rng, medium, kind, unseen) if isinstance(medium, Clip) else grammar.ask(rng, medium, kind, unseen, held_out)
