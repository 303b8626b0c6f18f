"""Steps, the form in which interactions write a conversation, as contents of the API and back.

Steps stay plain JSON, as they came and as they are stored; they are read here when a prompt is made of them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from pollux.serve.errors import invalid
from pollux.serve.store import new_id
from pollux.serve.wire.content import (
    Blob,
    CodeExecutionResult,
    Content,
    ExecutableCode,
    FileData,
    FunctionCall,
    FunctionResponse,
    FunctionResponsePart,
    Part,
)
from pollux.serve.wire.enums import Language, Modality, Outcome
from pollux.serve.wire.generate import ModalityTokenCount, UsageMetadata
from pollux.serve.wire.interactions import Block, Step
from pollux.serve.wire.message import parse

Json = dict[str, Any]

BLOCKS = ("text", "image", "audio", "video", "document")
CODE, CODE_RESULT = "code_execution_call", "code_execution_result"
# Of what tools looked up before the answer; a model does not read them again, for in the next turn its tools look anew.
LOOKED_UP = tuple(f"{tool}_{kind}" for tool in ("google_search", "url_context", "file_search") for kind in ("call", "result"))
STEPS = ("user_input", "model_output", "thought", "function_call", "function_result", CODE, CODE_RESULT, *LOOKED_UP)
_MEDIA = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4", "document": "text/plain"}  # where a block does not say


def read_input(data: Any) -> list[Json]:
    """The steps of an input: a string, a block, a step, or a list of blocks and steps. Raises ApiError 400."""
    if data is None or data == [] or data == "":
        raise invalid("input is missing; give a string, a piece of content, or a list of steps")
    steps: list[Json] = []
    blocks: list[Any] | None = None
    for i, item in enumerate(data if isinstance(data, list) else [data]):
        where = f"input[{i}]" if isinstance(data, list) else "input"
        if isinstance(item, str) and not isinstance(data, list):
            item = {"type": "text", "text": item}
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in BLOCKS:
            if blocks is None:
                blocks = []
                steps.append({"type": "user_input", "content": blocks})
            blocks.append(item)
        elif kind in STEPS:
            steps.append(item)
            blocks = None
        else:
            raise invalid(f"{where}.type must be one of {', '.join(BLOCKS + STEPS)}, not {kind!r:.60}")
    return steps


def read_steps(steps: Iterable[Json], where: str) -> tuple[tuple[Content, ...], list[str]]:
    """Contents, and the paths of fields that nobody knows. Raises ApiError 400 that names the field."""
    contents: list[Content] = []
    ignored: list[str] = []
    calls: dict[str, str] = {}  # names of functions by the ids of their calls
    for i, data in enumerate(steps):
        path = f"{where}[{i}]"
        step, unknown = parse(Step, data, path)
        ignored += unknown
        if step.type in ("user_input", "model_output"):
            role = "user" if step.type == "user_input" else "model"
            parts = tuple(_block(block, f"{path}.content[{j}]") for j, block in enumerate(step.content))
        elif step.type == "function_call":
            calls[step.id] = step.name
            role, parts = "model", (Part(function_call=FunctionCall(step.id, step.name, step.arguments)),)
        elif step.type == "function_result":
            role, parts = "user", (Part(function_response=_result(step, calls, path)),)
        elif step.type == CODE:
            role, parts = "model", (Part(executable_code=ExecutableCode("", Language.PYTHON, _code(step, path))),)
        elif step.type == CODE_RESULT:
            role, parts = "model", (Part(code_execution_result=_code_result(step, path)),)
        else:
            continue  # nor does a model read its thoughts again
        if contents and contents[-1].role == role:
            contents[-1] = Content(contents[-1].parts + parts, role)
        elif parts:
            contents.append(Content(parts, role))
    return tuple(contents), ignored


class Answer:
    """The steps of an answer as its parts come, behind those that there are; `steps` only grows: its last step, and in it the last text."""

    def __init__(self, steps: Iterable[Json] = ()) -> None:
        self.steps: list[Json] = list(steps)
        self._running: list[str] = []  # ids of code whose result has not come

    def add(self, part: Part) -> None:
        if part.function_call is not None:
            call = part.function_call
            self.steps.append(
                {"type": "function_call", "id": call.id or f"call_{new_id(16)}", "name": call.name, "arguments": call.args or {}}
            )
        elif part.executable_code is not None:
            self._running.append(f"code_{new_id(16)}")
            self.steps.append(
                {"type": CODE, "id": self._running[-1], "arguments": {"language": "python", "code": part.executable_code.code}}
            )
        elif part.code_execution_result is not None:
            result = part.code_execution_result
            failed = {} if result.outcome == Outcome.OUTCOME_OK else {"is_error": True}
            self.steps.append({"type": CODE_RESULT, "call_id": self._running.pop(0), "result": result.output} | failed)
        elif part.thought:
            _extend(self._open("thought", "summary"), {"type": "text", "text": part.text or ""})
        elif part.text is not None:
            _extend(self._open("model_output", "content"), {"type": "text", "text": part.text})
        elif part.inline_data is not None:
            blob = part.inline_data
            data = base64.b64encode(blob.data).decode()
            self._open("model_output", "content").append(
                {"type": blob.mime_type.partition("/")[0], "data": data, "mime_type": blob.mime_type}
            )

    @property
    def calls(self) -> bool:
        return any(step["type"] == "function_call" for step in self.steps)

    def _open(self, kind: str, content: str) -> list[Json]:
        if not self.steps or self.steps[-1]["type"] != kind:
            self.steps.append({"type": kind, content: []})
        return self.steps[-1][content]


def blocks_of(step: Json) -> Sequence[Json]:
    """What a step of an answer holds piece by piece; nothing for a call, which comes as one."""
    return step.get("content") or step.get("summary") or ()


def written_usage(usage: UsageMetadata) -> Json:
    """Tokens as interactions report them."""
    return {
        "total_input_tokens": usage.prompt_token_count or 0,
        "input_tokens_by_modality": _by_modality(usage.prompt_tokens_details),
        "total_cached_tokens": usage.cached_content_token_count or 0,
        "total_output_tokens": usage.candidates_token_count or 0,
        "output_tokens_by_modality": _by_modality(usage.candidates_tokens_details),
        "total_thought_tokens": usage.thoughts_token_count or 0,
        "total_tool_use_tokens": usage.tool_use_prompt_token_count or 0,
        "total_tokens": usage.total_token_count or 0,
    }


def _by_modality(counts: Iterable[ModalityTokenCount]) -> list[Json]:
    return [{"modality": Modality(count.modality).name.lower(), "tokens": count.token_count or 0} for count in counts]


def _extend(blocks: list[Json], text: Json) -> None:
    if blocks and blocks[-1]["type"] == "text":
        blocks[-1]["text"] += text["text"]
    else:
        blocks.append(text)


def _block(block: Block, where: str) -> Part:
    if block.type == "text":
        return Part(text=block.text)
    if block.type not in BLOCKS:
        raise invalid(f"{where}.type must be one of {', '.join(BLOCKS)}, not {block.type!r:.60}")
    if bool(block.data) == bool(block.uri):
        raise invalid(f"{where} must have either data, in base64, or a uri")
    if block.data:
        return Part(inline_data=Blob(block.mime_type or _MEDIA[block.type], block.data))
    return Part(file_data=FileData(block.uri, block.mime_type or _MEDIA[block.type]))


def _code(step: Step, where: str) -> str:
    code = (step.arguments or {}).get("code")
    if not isinstance(code, str):
        raise invalid(f"{where}.arguments.code must be a program")
    return code


def _code_result(step: Step, where: str) -> CodeExecutionResult:
    output = step.result
    if isinstance(output, list):
        blocks = [parse(Block, item, f"{where}.result[{j}]")[0] for j, item in enumerate(output)]
        output = "".join(block.text for block in blocks if block.type == "text")
    if not isinstance(output, str):
        raise invalid(f"{where}.result must be a string or a list of pieces of content")
    return CodeExecutionResult("", Outcome.OUTCOME_FAILED if step.is_error else Outcome.OUTCOME_OK, output)


def _result(step: Step, calls: dict[str, str], where: str) -> FunctionResponse:
    name = step.name or calls.get(step.call_id, "")
    if not name:
        raise invalid(f"{where}.call_id is {step.call_id!r:.60}, but no function_call before it has this id")
    media: list[FunctionResponsePart] = []
    value = step.result
    if isinstance(value, list):
        blocks = [parse(Block, item, f"{where}.result[{j}]")[0] for j, item in enumerate(value)]
        parts = [_block(block, f"{where}.result[{j}]") for j, block in enumerate(blocks)]
        value = "".join(part.text for part in parts if part.text is not None)
        media = [FunctionResponsePart(part.inline_data, part.file_data) for part in parts if part.text is None]
    response = value if isinstance(value, dict) else {"error" if step.is_error else "result": value}
    return FunctionResponse(step.call_id, name, response, tuple(media))
