"""The world as documents to train on and items to evaluate on, with known truth in all modalities.

`World.document(task, index)` is a pure function of (config, task, index) and never shows a held-out pair of colour and shape
in a picture, a clip, a drawing or speech. `World.items` gives prompts with right answers: split "seen" is fresh but of the
training kind; in split "held_out" every item with media has a held-out pair, speech comes in voices never trained on, and
every second item is asked in a phrasing never trained on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pollux.content import Audio, Content, Document, Image, Part, Text, Video
from pollux.data.world import calls, clips, conversation, few_shot, grammar, speech, stories, talk
from pollux.data.world.grammar import Exchange
from pollux.data.world.render import render
from pollux.data.world.scene import Scene, SceneConfig, sample_scene, stream

TASKS = ("picture", "speech", "spoken_question", "clip", "draw", "film", "few_shot", "arithmetic", "story", "conversation", "call", "talk")
EVALUATIONS = (
    *("caption", "vqa", "speech", "spoken_question", "clip", "clip_caption", "draw", "few_shot", "arithmetic", "story"),
    "conversation",  # the kind of an item is that of its last turn, which is not a drawing
)
SPLITS = ("seen", "held_out")
TRANSCRIBE_PROMPTS = ("transcribe", "what was said", "write what was said", "transcribe what was said")

Truth = Scene | clips.Clip | few_shot.FewShot | speech.Utterance | tuple[Scene, speech.Utterance] | conversation.Conversation | None


@dataclass(frozen=True)
class WorldConfig:
    """One field per decision about the world; shares are probabilities."""

    seed: int = 0
    picture: SceneConfig = field(default_factory=SceneConfig)
    drawing: SceneConfig = field(default_factory=lambda: SceneConfig(max_objects=2, jitter=0.5, rotation=5.0, contrast=0.0, noise=0.0))
    captions: int = 2  # a picture, at most len(grammar.STYLES)
    listings: int = 0  # a picture: captions in any order of the objects, at most len(grammar.STYLES)
    questions: int = 6  # a picture
    clip_questions: int = 8  # a clip, besides its caption
    spoken_questions: int = 3  # a picture that is asked about aloud
    conversation_room: int = 240  # tokens that the turns of a conversation may take by the quick start's settings
    sound_share: float = 0.3  # clips with a sound
    single_turn_share: float = 0.1  # pictures and clips with one question in the same turn instead of many branches
    align_share: float = 0.0  # pictures, clips and speech with a text for the contrastive loss
    speech_clips: int = 3200  # size of the pool of spoken phrases
    word_lists: float = 0.4  # share of them that are words in any order
    question_clips: int = 800  # size of the pool of spoken questions
    speech_workers: int = 2
    cache: str = "runs/speech"  # folder for synthesised speech

    def __post_init__(self):
        if self.conversation_room < conversation.LEAST_ROOM:
            raise ValueError(f"conversation_room {self.conversation_room} must be at least {conversation.LEAST_ROOM} tokens, for two turns")


@dataclass(frozen=True)
class Item:
    """One evaluation case: prompt turns, the right answer, the type of question, and the truth that it follows from.

    A drawing has no text to compare; judge it with `checker.judge(pixels, item.truth.things)`.
    """

    contents: tuple[Content, ...]
    answer: str
    kind: str
    truth: Truth
    unseen_phrasing: bool


class World:
    """See the module docstring. Speech is synthesised on first use; `prepare_speech` does it ahead of time."""

    def __init__(self, config: WorldConfig = WorldConfig()):
        self.config = config

    def document(self, task: str, index: int) -> Document:
        """Training document number `index` (>= 0) of a task in TASKS. Raises ValueError for an unknown task."""
        makers = {
            "picture": self._picture,
            "speech": self._speech,
            "spoken_question": self._spoken_question,
            "clip": self._clip,
            "draw": self._draw,
            "film": self._film,
            "few_shot": self._few_shot,
            "arithmetic": self._arithmetic,
            "story": self._story,
            "conversation": self._conversation,
            "call": calls.conversation,
            "talk": talk.conversation,
        }
        if task not in makers:
            raise ValueError(f"task {task!r} must be one of {', '.join(TASKS)}")
        return makers[task](stream(self.config.seed, task, "train", index))

    def prepare_speech(self) -> None:
        """Synthesise the training speech now (about 12 s on two cores) or find it in the cache."""
        _ = self._phrase_pool, self._question_pool

    def items(self, task: str, n: int, split: str = "held_out") -> list[Item]:
        """`n` items of a task in EVALUATIONS; the kinds of question take turns. Raises ValueError for a wrong name."""
        return [self._item(task, split, index) for index in range(n)]

    def text_sample(self, n: int) -> Iterator[str]:
        """`n` strings of every kind of text in the training documents, for a tokenizer to learn from."""
        names = [name for name in EVALUATIONS if name not in ("spoken_question", "conversation")]  # which say nothing else
        texts = (t for i in range(n) for t in self._texts(names[i % len(names)], i))
        for _, text in zip(range(n), texts, strict=False):
            yield text

    def chance(self, task: str, n: int = 4000) -> dict[str, float]:
        """Exact-match rate per kind of question that is reached without the media (for tasks without media: without the prompt).

        The blind guess is the majority answer to the same prompt, or to the same kind where that does better, counted on `n`
        training cases; it is tried on n/2 cases of each split, and the better figure counts. Of an answer that says facts first, it has to
        hit the verdict alone.
        """
        by_prompt = task not in ("draw", "arithmetic", "story")
        cases = [self._case(task, "train", i)[0] for i in range(n)]
        for_kind = _majority([(e.kind, e.verdict) for e in cases])
        for_prompt = _majority([((e.kind, e.prompt), e.verdict) for e in cases]) if by_prompt else {}
        best: dict[str, float] = defaultdict(float)
        for split in SPLITS:
            trials = [self._case(task, split, i)[0] for i in range(n // 2)]
            for kind in {e.kind for e in trials}:
                asked = [e for e in trials if e.kind == kind]
                plain = np.mean([for_kind.get(kind) == e.verdict for e in asked])
                exact = np.mean([for_prompt.get((kind, e.prompt), for_kind.get(kind)) == e.verdict for e in asked])
                best[kind] = max(best[kind], float(plain), float(exact))
        return dict(best)

    def _picture(self, rng: np.random.Generator) -> Document:
        scene = sample_scene(rng, self.config.picture, False)
        spoken = grammar.captions(rng, scene, self.config.captions) + grammar.listings(rng, scene, self.config.listings)
        spoken += grammar.questions(rng, scene, self.config.questions)
        return self._asked(rng, Image(render(scene)), spoken, grammar.describe(scene))

    def _clip(self, rng: np.random.Generator) -> Document:
        clip = clips.sample_clip(rng, self.config.picture, False, self.config.sound_share)
        spoken = [clips.clip_caption(rng, clip), *clips.clip_questions(rng, clip, self.config.clip_questions)]
        return self._asked(rng, Video(clips.render_clip(clip)), spoken, clips.describe_clip(clip))

    def _asked(self, rng: np.random.Generator, media: Part, exchanges: list[Exchange], meaning: str) -> Document:
        """Many branches about one medium, or one exchange in a single turn."""
        if rng.random() < self.config.single_turn_share:
            chosen = exchanges[rng.integers(len(exchanges))]
            return Document((_user(media, Text(chosen.prompt)), _model(chosen.answer)))
        branches = tuple((_user(Text(e.prompt)), _model(e.answer)) for e in exchanges)
        return Document((_user(media),), branches, self._align(rng, meaning))

    def _align(self, rng: np.random.Generator, meaning: str) -> str | None:
        return meaning if rng.random() < self.config.align_share else None

    def _speech(self, rng: np.random.Generator) -> Document:
        pool = self._phrase_pool
        number = int(rng.integers(len(pool)))
        said = pool.utterances[number].text
        audio = _use(rng, pool, number)
        prompt = grammar.phrase(rng, TRANSCRIBE_PROMPTS, False)
        return Document((_user(audio, Text(prompt)), _model(said)), align=self._align(rng, said))

    def _spoken_question(self, rng: np.random.Generator) -> Document:
        scene = sample_scene(rng, self.config.picture, False)
        pool, by_text = self._question_pool
        branches = []
        for _ in range(self.config.spoken_questions):
            exchange = grammar.ask_aloud(rng, scene)
            takes = by_text[exchange.prompt]
            audio = _use(rng, pool, takes[rng.integers(len(takes))])
            branches.append((_user(audio), _model(exchange.answer)))
        return Document((_user(Image(render(scene))),), tuple(branches))

    def _draw(self, rng: np.random.Generator) -> Document:
        scene = sample_scene(rng, self.config.drawing, False)
        return Document((_user(Text(grammar.draw_request(rng, scene))), Content("model", (Image(render(scene)),))))

    def _film(self, rng: np.random.Generator) -> Document:
        clip = clips.sample_clip(rng, self.config.drawing, False, 0.0)
        frames = tuple(Image(pixels) for pixels in clips.render_clip(clip).frames)
        return Document((_user(Text(clips.film_request(rng, clip))), Content("model", frames)))

    def _few_shot(self, rng: np.random.Generator) -> Document:
        game = few_shot.sample_few_shot(rng, self.config.picture, False)
        return Document((*_few_shot_prompt(game), _model(game.labels[-1])))

    def _arithmetic(self, rng: np.random.Generator) -> Document:
        sums = [stories.arithmetic(rng) for _ in range(4)]
        return Document(tuple(turn for e in sums for turn in (_user(Text(e.prompt)), _model(e.answer))))

    def _story(self, rng: np.random.Generator) -> Document:
        exchange = stories.story(rng)
        if rng.random() < 0.25:
            return Document((Content("", (Text(f"{exchange.prompt} {exchange.answer}"),)),))
        return Document((_user(Text(exchange.prompt)), _model(exchange.answer)))

    def _conversation(self, rng: np.random.Generator) -> Document:
        pool = self._phrase_pool
        clip_of = {}

        def hear(rng: np.random.Generator, held_out: bool, unseen: bool) -> tuple[Exchange, speech.Utterance]:
            number = int(rng.integers(len(pool)))
            clip_of[pool.utterances[number]] = number
            return _transcription(rng, pool.utterances[number], unseen), pool.utterances[number]

        config = self.config
        talk = conversation.sample_conversation(rng, config.picture, config.drawing, hear, config.conversation_room)
        return Document(conversation.contents(talk, lambda utterance: _use(rng, pool, clip_of[utterance])))

    @functools.cached_property
    def _phrase_pool(self) -> speech.SpeechPool:
        rng, known = stream(self.config.seed, "phrases"), speech.phrases(False)
        lists = rng.random(self.config.speech_clips) < self.config.word_lists
        texts = [speech.word_list(rng) if chosen else known[rng.integers(len(known))] for chosen in lists]
        return self._pool(rng, texts)

    @functools.cached_property
    def _question_pool(self) -> tuple[speech.SpeechPool, dict[str, list[int]]]:
        known = grammar.spoken_sentences(False)
        if self.config.question_clips < len(known):
            raise ValueError(
                f"question_clips {self.config.question_clips} must be at least {len(known)}, one clip for each spoken question"
            )
        texts = [known[i % len(known)] for i in range(self.config.question_clips)]
        by_text: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            by_text[text].append(number)
        return self._pool(stream(self.config.seed, "spoken questions"), texts), dict(by_text)

    def _pool(self, rng: np.random.Generator, texts: list[str]) -> speech.SpeechPool:
        utterances = tuple(speech.sample_utterance(rng, text, False) for text in texts)
        return speech.SpeechPool(utterances, Path(self.config.cache), self.config.speech_workers)

    def _item(self, task: str, split: str, index: int) -> Item:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
        exchange, truth = self._case(task, split, index)
        question = Text(exchange.prompt)
        match truth:
            case None:
                contents: tuple[Content, ...] = (_user(question),)
            case Scene() if task == "draw":
                contents = (_user(question),)
            case Scene():
                contents = (_user(Image(render(truth))), _user(question))
            case clips.Clip():
                contents = (_user(Video(clips.render_clip(truth))), _user(question))
            case few_shot.FewShot():
                contents = _few_shot_prompt(truth)
            case speech.Utterance():
                contents = (_user(self._voice(split, index, truth), question),)
            case conversation.Conversation():
                contents = conversation.contents(truth, functools.partial(self._voice, split, index))[:-1]
            case (scene, utterance):
                contents = (_user(Image(render(scene))), _user(self._voice(split, index, utterance)))
        return Item(contents, exchange.answer, exchange.kind, truth, _unseen(split, index))

    def _voice(self, split: str, index: int, utterance: speech.Utterance) -> Audio:
        return Audio(speech.vary(stream(self.config.seed, "voice", split, index), speech.speak(utterance)), speech.RATE)

    def _case(self, task: str, split: str, index: int) -> tuple[Exchange, Truth]:
        """Prompt, answer and truth of one evaluation case, or with split "train" of a training one; nothing is rendered."""
        rng, held_out, unseen = stream(self.config.seed, task, split, "case", index), split == "held_out", _unseen(split, index)
        turn = index // 2
        if task == "caption":
            scene = sample_scene(rng, self.config.picture, held_out)
            return grammar.captions(rng, scene, 1, unseen)[0], scene
        if task == "vqa":
            kind = list(grammar.QUESTIONS)[turn % len(grammar.QUESTIONS)]
            while kind not in grammar.kinds_for(scene := sample_scene(rng, self.config.picture, held_out)):
                pass
            return grammar.ask(rng, scene, kind, unseen, held_out), scene
        if task in ("clip", "clip_caption"):
            kind = list(clips.QUESTIONS)[turn % len(clips.QUESTIONS)]
            clip = clips.sample_clip(rng, self.config.picture, held_out, 1.0 if kind.startswith("sound") else self.config.sound_share)
            return (clips.ask_clip(rng, clip, kind, unseen) if task == "clip" else clips.clip_caption(rng, clip, unseen)), clip
        if task == "speech":
            return _hear(rng, held_out, unseen)
        if task == "spoken_question":
            scene = sample_scene(rng, self.config.picture, held_out)
            exchange = grammar.ask_aloud(rng, scene, held_out)
            return exchange, (scene, speech.sample_utterance(rng, exchange.prompt, held_out))
        if task == "draw":
            scene = sample_scene(rng, self.config.drawing, held_out)
            kind = grammar.NUMBERS[len(scene.things)]
            return Exchange(kind, grammar.draw_request(rng, scene, unseen), grammar.describe(scene)), scene
        if task == "few_shot":
            game = few_shot.sample_few_shot(rng, self.config.picture, held_out)
            return Exchange(game.kind, " ".join(game.labels[:-1]) if game.kind == "word" else "", game.labels[-1]), game
        if task == "conversation":
            kinds = [kind for kind in conversation.LENGTHS if kind != "draw"]
            settings = self.config.picture, self.config.drawing, _hear, self.config.conversation_room
            talk = conversation.sample_conversation(rng, *settings, kinds[turn % len(kinds)], held_out, unseen)
            return dataclasses.replace(talk.last.exchange, kind=talk.last.kind), talk
        if task == "arithmetic":
            return stories.arithmetic(rng), None
        if task == "story":
            return stories.story(rng), None
        raise ValueError(f"evaluation task {task!r} must be one of {', '.join(EVALUATIONS)}")

    def _texts(self, name: str, index: int) -> tuple[str, ...]:
        exchange, truth = self._case(name, "train", index)
        said = [exchange]
        if name == "caption":  # what else is said of pictures, in training only
            assert isinstance(truth, Scene)
            said += grammar.listings(stream(self.config.seed, "list texts", index), truth, 1)
        return tuple(t for e in said for t in (e.prompt, e.answer) if t)


def _use(rng: np.random.Generator, pool: speech.SpeechPool, number: int) -> Audio:
    """One use of a clip in training."""
    return Audio(speech.vary(rng, speech.disguise(rng, pool.clip(number))), speech.RATE)


def _hear(rng: np.random.Generator, held_out: bool, unseen: bool) -> tuple[Exchange, speech.Utterance]:
    """A phrase in a voice, both for training or both for evaluation only, and the request to transcribe it."""
    known = speech.phrases(held_out)
    utterance = speech.sample_utterance(rng, known[rng.integers(len(known))], held_out)
    return _transcription(rng, utterance, unseen), utterance


def _transcription(rng: np.random.Generator, utterance: speech.Utterance, unseen: bool) -> Exchange:
    return Exchange("transcribe", grammar.phrase(rng, TRANSCRIBE_PROMPTS, unseen), utterance.text)


def _unseen(split: str, index: int) -> bool:
    return split == "held_out" and index % 2 == 1


def _user(*parts: Part) -> Content:
    return Content("user", parts)


def _model(text: str) -> Content:
    return Content("model", (Text(text),))


def _few_shot_prompt(game: few_shot.FewShot) -> tuple[Content, ...]:
    """Pictures and labels up to the query picture: model turns for attributes, one interleaved user turn for made-up words."""
    pictures = [Image(render(s)) for s in game.scenes]
    if game.kind == "word":
        pairs = [part for picture, label in zip(pictures, game.labels, strict=True) for part in (picture, Text(label))]
        return (_user(*pairs[:-1]),)
    examples = zip(pictures[:-1], game.labels, strict=False)
    return (*(turn for picture, label in examples for turn in (_user(picture), _model(label))), _user(pictures[-1]))


def _majority(pairs: list[tuple[Any, str]]) -> dict[Any, str]:
    """The most frequent answer for each key."""
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    for key, answer in pairs:
        counts[key][answer] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
