"""Contents of a request as the turns that a model reads, and parts that a model wrote as those of an answer.

What the API calls a user's turn may hold answers of functions, which the model reads as a turn of their own; they come without ids,
so they are put in the order of the calls that they answer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from pollux import content, media
from pollux.serve.errors import invalid
from pollux.serve.media import from_blob, from_file
from pollux.serve.server import Server
from pollux.serve.tools.code_execution import read_again
from pollux.serve.wire.content import Blob, Content, FunctionCall, FunctionResponse, Part
from pollux.serve.wire.enums import Outcome

ROLES = {"user": "user", "": "user", "function": "user", "tool": "user", "model": "model"}


def read_contents(
    server: Server, contents: Iterable[Content], where: str, owner: str = "", runs_code: bool = False
) -> list[content.Content]:
    """The turns of contents; blocks. runs_code: the model knows of code as a function that it calls, and of results as what that returns;
    else it reads them as text. Raises ApiError 400 that names the field, 403 for a file that is not there."""
    turns: list[content.Content] = []
    calls: list[FunctionCall] = []  # of the last model's turn that had some
    for i, one in enumerate(contents):
        given = dataclasses.replace(one, parts=tuple(read_again(one.parts, runs_code))) if one.role == "model" and one.parts else one
        turns += read_content(server, given, f"{where}[{i}]", owner, calls)
        calls = [part.function_call for part in one.parts if part.function_call] or calls
    return turns


def read_content(server: Server, one: Content, where: str, owner: str = "", calls: Sequence[FunctionCall] = ()) -> list[content.Content]:
    """The turns of one content, several if more than one speaks in it; calls: those that it may answer. As `read_contents`."""
    if one.role not in ROLES:
        raise invalid(f'{where}.role must be "user" or "model", not {one.role!r:.60}')
    if not one.parts:
        raise invalid(f"{where}.parts must not be empty")
    role = ROLES[one.role]
    made = [said for j, part in _in_order_of(calls, one.parts) for said in _parts(server, part, role, f"{where}.parts[{j}]", calls, owner)]
    runs = itertools.groupby(made, key=lambda said: said[0])
    return [content.Content(who, tuple(part for _, part in run)) for who, run in runs] or [content.Content(role, ())]


def read_system(server: Server, instruction: Content, where: str, owner: str = "") -> list[content.Content]:
    """The turn of a system instruction, whatever role it names; none if it is empty. Blocks."""
    parts = [c for j, part in enumerate(instruction.parts) for _, c in _parts(server, part, "system", f"{where}.parts[{j}]", [], owner)]
    return [content.Content("system", tuple(parts))] if parts else []


def joined(turns: Iterable[content.Content]) -> list[content.Content]:
    """Turns of the same role in a row as one, for chat templates that want roles to take turns; the API does not ask for it."""
    runs = itertools.groupby(turns, key=lambda turn: turn.role)
    return [content.Content(role, tuple(part for turn in run for part in turn.parts)) for role, run in runs]


def write_part(part: content.Part) -> Part:
    """A part of an answer. A picture becomes a PNG: blocks."""
    if isinstance(part, content.Text):
        return Part(text=part.text)
    if isinstance(part, content.Image):
        return Part(inline_data=Blob("image/png", media.encode_image(part.pixels())))
    if isinstance(part, content.FunctionCall):
        return Part(function_call=FunctionCall(part.id or "", part.name, dict(part.args)))
    raise TypeError(f"a model does not write a {type(part).__name__}")


def _parts(server: Server, part: Part, role: str, where: str, calls: Sequence[FunctionCall], owner: str) -> list[tuple[str, content.Part]]:
    """What a part says, each with the role that says it. Thoughts are not shown to the model again."""
    if part.thought:
        return []
    if part.text is not None:
        return [(role, content.Text(part.text))] if part.text else []
    if part.inline_data is not None:
        return [(role, medium) for medium in from_blob(part.inline_data, f"{where}.inlineData", part.video_metadata)]
    if part.file_data is not None:
        return [(role, medium) for medium in from_file(server, part.file_data, f"{where}.fileData", owner, part.video_metadata)]
    if part.function_call is not None:
        if not part.function_call.name:
            raise invalid(f"{where}.functionCall.name is missing")
        return [("model", content.FunctionCall(part.function_call.name, part.function_call.args or {}))]
    if part.function_response is not None:
        return _response(server, part.function_response, f"{where}.functionResponse", calls, owner)
    if part.executable_code is not None:
        return [(role, content.Text(f"```python\n{part.executable_code.code}\n```\n"))]
    if part.code_execution_result is not None:
        result = part.code_execution_result
        failed = "" if result.outcome in (Outcome.OUTCOME_UNSPECIFIED, Outcome.OUTCOME_OK) else f"{result.outcome.name}\n"
        return [(role, content.Text(f"```\n{failed}{result.output}\n```\n"))]
    return []


def _response(
    server: Server, response: FunctionResponse, where: str, calls: Sequence[FunctionCall], owner: str
) -> list[tuple[str, content.Part]]:
    name = response.name or next((call.name for call in calls if call.id and call.id == response.id), "")
    if not name:
        raise invalid(f"{where}.name is missing")
    made: list[tuple[str, content.Part]] = [("tool", content.FunctionResponse(name, response.response or {}))]
    for i, part in enumerate(response.parts):
        path = f"{where}.parts[{i}]"
        if part.inline_data is not None:
            made += [("tool", medium) for medium in from_blob(part.inline_data, f"{path}.inlineData")]
        elif part.file_data is not None:
            made += [("tool", medium) for medium in from_file(server, part.file_data, f"{path}.fileData", owner)]
    return made


def _in_order_of(calls: Sequence[FunctionCall], parts: Sequence[Part]) -> list[tuple[int, Part]]:
    """The parts with their numbers, answers of functions in the order of the calls that they answer: by id, else by name and order."""
    places = [i for i, part in enumerate(parts) if part.function_response is not None]
    unanswered = list(range(len(calls)))
    ranks = {}
    for i in places:
        response = parts[i].function_response or FunctionResponse()
        by_id = [k for k in unanswered if response.id and calls[k].id == response.id]
        by_name = [k for k in unanswered if calls[k].name == response.name]
        ranks[i] = (by_id or by_name or [len(calls)])[0]
        unanswered = [k for k in unanswered if k != ranks[i]]
    ordered = iter(sorted(places, key=lambda i: ranks[i]))
    return [(j, parts[j]) for j in (next(ordered) if i in ranks else i for i in range(len(parts)))]
