"""Chat templates: contents are spelled as the makers of a model spelled them, by the Jinja template in its folder.

The template writes text with placeholders for media, which become spans of soft tokens. What a person wrote can never become a
placeholder or another special token, even if it spells one: such a spelling is broken up while the template runs.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pollux.content import Audio, Content, Document, FunctionCall, FunctionResponse, Image, Part, Text, Video
from pollux.tokens.calls import declared

if TYPE_CHECKING:
    from pollux.tokens.interleave import Writer

ROLES = {"user": "user", "model": "assistant", "system": "system", "tool": "tool"}
MARKS = "".join(map(chr, range(0xE000, 0xE040)))  # private-use characters, one of which breaks up special tokens in people's text
_MEDIA: dict[type, str] = {Image: "image", Audio: "audio", Video: "video"}


@dataclass(frozen=True)
class Template:
    """A Jinja template and the words that it and the tokenizer use."""

    source: str  # "" = none: only running text (role "") can be written
    special: Mapping[str, int]  # every special token of the tokenizer, by its text
    placeholders: Mapping[str, str]  # "image", "audio", "video" by the special token that stands for one
    start: tuple[int, ...] = ()  # ids before a text that does not spell them, usually <bos>
    variables: Mapping[str, Any] = field(default_factory=dict)  # for the template: bos_token, eos_token

    def write_prompt(self, writer: Writer, contents: Sequence[Content], variables: Mapping[str, Any]) -> Writer:
        """What a model continues: its own turn, or running text. variables: for the template, besides its own; `tools` are declarations of
        functions, {"name", "description", "parameters"} with or without {"type": "function", "function": ...} around it.

        Raises ValueError for what the template refuses.
        """
        spelled = self.spell(contents, opened=_role(contents) != "", variables=variables)
        media = _media(contents)
        self._write(writer, self._begin(writer, spelled), media, 0)
        _require_written(media)
        return writer

    def write_document(self, writer: Writer, document: Document) -> Writer:
        """A document to train on; targets are what the model wrote: after the opening of its turn, or all of a running text."""
        media, spelled = _media(document.contents), _Spelled("", "")
        self._turns(writer, (), document.contents, spelled, media)
        if document.align is not None:
            raise ValueError("a text to align needs a model of this project, not one with a chat template")
        for number, branch in enumerate(document.branches, start=1):
            writer.start_branch(number)
            whole = self.spell(document.contents, opened=False) if document.contents else spelled
            self._turns(writer, document.contents, branch, whole, _media(branch))
        return writer

    def spell(self, contents: Sequence[Content], opened: bool, variables: Mapping[str, Any] | None = None) -> _Spelled:
        """The text of contents; `opened`: with the opening of a model turn."""
        variables = dict(variables or {})
        mark = _unused_mark(contents, variables)
        safe = functools.partial(self._broken, mark=mark)
        if _role(contents) == "":
            return _Spelled("".join(safe(part.text) for content in contents for part in content.parts if isinstance(part, Text)), mark)
        if not self.source:
            raise ValueError("this model folder has no chat template, so it continues running text (role '') and has no turns")
        if "tools" in variables:
            variables["tools"] = [{"type": "function", "function": declared(tool)} for tool in variables["tools"]] or None
        variables = {**self.variables, **_safe(variables, safe), "messages": _messages(contents, safe), "add_generation_prompt": opened}
        try:
            text = _compiled(self.source).render(variables)
        except _errors() as error:
            raise ValueError(f"the chat template of the model folder refuses these contents: {error}") from error
        return _Spelled(text, mark)

    def _turns(self, writer: Writer, before: Sequence[Content], contents: Sequence[Content], done: _Spelled, media: list[Part]) -> None:
        for i, content in enumerate(contents):
            until = [*before, *contents[: i + 1]]
            whole = self.spell(until, opened=False)
            if content.role == "model":
                opening = self._shared(self.spell(until[:-1], opened=True), whole)
                self._write(writer, self._begin(writer, opening.after(done)), media, 0)
                done = opening
                if [x.role for x in contents[i + 1 : i + 2]] == ["tool"]:  # its answer may belong to the same turn
                    whole = self._shared(whole, self.spell([*until, contents[i + 1]], opened=False))
            self._write(writer, self._begin(writer, whole.after(done)), media, float(content.role in ("model", "")))
            done = whole
        _require_written(media)

    def _shared(self, shorter: _Spelled, longer: _Spelled) -> _Spelled:
        """The shorter without what comes off its end as more is written, such as Gemma 4's empty thoughts at the opening of a turn."""
        pieces = self._pattern.split(shorter.text)
        while not longer.text.startswith("".join(pieces)):
            pieces.pop()
        return _Spelled("".join(pieces), shorter.mark)

    def _begin(self, writer: Writer, spelled: _Spelled) -> _Spelled:
        if not writer.ids and not any(spelled.text.startswith(token) for token, i in self.special.items() if i in self.start):
            writer.write(list(self.start))
        return spelled

    def _write(self, writer: Writer, spelled: _Spelled, media: list[Part], target: float) -> None:
        """Tokens of a text; each placeholder takes the next of `media`."""
        pieces = self._pattern.split(spelled.text)  # text and special tokens in turn
        for text, special in itertools.zip_longest(pieces[::2], pieces[1::2]):
            text = text.replace(spelled.mark, "") if spelled.mark else text
            kind = self.placeholders.get(special)
            if kind and (not media or _MEDIA[type(media[0])] != kind):
                raise ValueError(f"the chat template asks for {kind} where the contents have none")
            if text and kind != "video":
                writer.write(writer.vocabulary.encode_text(text), target)
            if kind:
                writer.media(media.pop(0), text if kind == "video" else "")  # type: ignore[arg-type]
            elif special:
                writer.write([self.special[special]], target)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) + ")")

    def _broken(self, text: str, mark: str) -> str:
        return self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)


@dataclass(frozen=True)
class _Spelled:
    text: str
    mark: str

    def after(self, before: _Spelled) -> _Spelled:
        """What this adds to a text that it begins with."""
        if not self.text.startswith(before.text):
            raise ValueError("the chat template of the model folder changes earlier turns when one is added, so it cannot be trained on")
        return _Spelled(self.text[len(before.text) :], self.mark)


def _messages(contents: Iterable[Content], safe: Callable[[str], str]) -> list[dict[str, Any]]:
    """The turns as templates know them, their texts through `safe`; what a function answered belongs to the turn that called it."""
    messages: list[dict[str, Any]] = []
    for content in contents:
        message = _message(content, safe)
        if content.role == "tool" and not message["content"] and messages and "tool_calls" in messages[-1]:
            messages[-1].setdefault("tool_responses", []).extend(message.get("tool_responses", []))
        else:
            messages.append(message)
    return messages


def _message(content: Content, safe: Callable[[str], str]) -> dict[str, Any]:
    """The turn as templates know it, its texts through `safe`; the contents of a system turn are one text, as most templates ask for."""
    message: dict[str, Any] = {"role": ROLES.get(content.role, content.role), "content": []}
    for part in content.parts:
        if isinstance(part, Text):
            message["content"].append({"type": "text", "text": safe(part.text)})
        elif isinstance(part, FunctionCall):
            function = {"name": part.name, "arguments": _safe(part.args, safe)}
            message.setdefault("tool_calls", []).append({"type": "function", "id": part.id, "function": function})
        elif isinstance(part, FunctionResponse):
            message.setdefault("tool_responses", []).append({"name": part.name, "response": _safe(part.response, safe)})
        else:
            message["content"].append({"type": _MEDIA[type(part)]})
    if content.role == "system" and all(isinstance(part, Text) for part in content.parts):
        message["content"] = "\n".join(item["text"] for item in message["content"])
    return message


def _safe(value: Any, safe: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, Mapping):
        return {safe(key): _safe(item, safe) for key, item in value.items()}
    return [_safe(item, safe) for item in value] if isinstance(value, list | tuple) else value


def _role(contents: Sequence[Content]) -> str:
    """ "" for running text alone. Raises ValueError for a mixture of running text and turns."""
    roles = {content.role for content in contents}
    if "" in roles and len(roles) > 1:
        raise ValueError("a model with a chat template reads turns or running text (role ''), not both in one prompt")
    if any(_MEDIA.get(type(part)) for content in contents if content.role == "" for part in content.parts):
        raise ValueError("a model with a chat template reads media in turns, not in running text (role '')")
    return "" if "" in roles else "turns"


def _media(contents: Iterable[Content]) -> list[Part]:
    return [part for content in contents for part in content.parts if type(part) in _MEDIA]


def _require_written(media: list[Part]) -> None:
    if media:
        raise ValueError(f"the chat template of the model folder has no place for {_MEDIA[type(media[0])]}")


def _unused_mark(contents: Iterable[Content], variables: Mapping[str, Any]) -> str:
    text = "".join(str(part) for content in contents for part in content.parts if not isinstance(part, Image | Audio | Video))
    text += str(variables)
    return next(mark for mark in MARKS if mark not in text)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """The template in a sandbox, with what templates of transformers expect."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda x, indent=None, **_: json.dumps(x, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _raise(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _errors() -> type[Exception]:
    from jinja2.exceptions import TemplateError

    return TemplateError
