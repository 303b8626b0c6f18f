"""A conversation with a model: the turns so far are the prompt of the next answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pollux.content import Content, Part, to_contents
from pollux.generate.answer import Result
from pollux.generate.model import Model


class Chat:
    """A conversation: keeps the turns and answers in their light."""

    def __init__(self, model: Model, contents: Any = ()):
        """contents: turns that came before, for example a system turn."""
        self.model = model
        self.contents: list[Content] = list(to_contents(contents)) if contents else []

    def send(self, contents: Any, **sampling: Any) -> Result:
        """Add a user turn, or the turns given as Contents, and the model's answer to them."""
        turns = [*self.contents, *to_contents(contents)]
        result = self.model.generate(turns, **sampling)
        self._keep(turns, result)
        return result

    def stream(self, contents: Any, **sampling: Any) -> Iterator[Part]:
        """Like `send`, part by part; the turns are kept when the answer is complete."""
        turns = [*self.contents, *to_contents(contents)]
        stream = self.model.stream(turns, **sampling)
        yield from stream
        assert stream.result is not None
        self._keep(turns, stream.result)

    def _keep(self, turns: list[Content], result: Result) -> None:
        self.contents = [*turns, Content("model", result.parts)]
