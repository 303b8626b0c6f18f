"""`codeExecution`: the model writes Python, the server runs it in a sandbox, and the model reads what it printed.

In a conversation that is sent again, the parts of earlier code are read as the calls and answers that they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pollux import content
from pollux.serve.tools.sandbox import Ran, Sandbox
from pollux.serve.tools.tool import Leave, Outcome, ServerTool
from pollux.serve.wire.content import Blob, CodeExecutionResult, ExecutableCode, FunctionCall, FunctionResponse, Part
from pollux.serve.wire.enums import Language
from pollux.serve.wire.enums import Outcome as Ended

FUNCTION = "run_python"
DECLARATION = {
    "name": FUNCTION,
    "description": "Runs a Python program, without network, and returns what it prints. The user sees *.png files that it saves.",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}


@dataclass(frozen=True)
class CodeExecution:
    """The tool as an operator enables it."""

    sandbox: Sandbox

    def open(self, asked: Any, owner: str) -> ServerTool:
        return _CodeExecution(self.sandbox)


class _CodeExecution(ServerTool):
    declarations = (DECLARATION,)

    def __init__(self, sandbox: Sandbox):
        self._sandbox, self.seconds = sandbox, sandbox.limits.seconds

    def shown(self, call: content.FunctionCall) -> tuple[Part, ...]:
        return (Part(executable_code=ExecutableCode(language=Language.PYTHON, code=_code(call))),)

    def run(self, call: content.FunctionCall, leave: Leave) -> Outcome:
        ran = self._sandbox.run(_code(call), leave.seconds, leave.ended)
        result = CodeExecutionResult(outcome=_outcome(ran), output=_told(ran))
        pictures = (Part(inline_data=Blob("image/png", data)) for data in ran.pictures.values())
        return Outcome(_response(result), (Part(code_execution_result=result), *pictures))


def read_again(parts: Sequence[Part], as_calls: bool) -> Iterator[Part]:
    """The parts of a model's turn as the model reads them later: without the pictures that code left, which it has not seen before
    either. as_calls: code and results as calls of the function and its answers, for a model that is told of it."""
    after_result = False
    for part in parts:
        if part.inline_data is not None and after_result:
            continue
        after_result = part.code_execution_result is not None
        if as_calls and part.executable_code is not None:
            yield Part(function_call=FunctionCall(name=FUNCTION, args={"code": part.executable_code.code}))
        elif as_calls and part.code_execution_result is not None:
            yield Part(function_response=FunctionResponse(name=FUNCTION, response=_response(part.code_execution_result)))
        else:
            yield part


def _response(result: CodeExecutionResult) -> dict[str, Any]:
    return {"outcome": result.outcome.name, "output": result.output}


def _code(call: content.FunctionCall) -> str:
    code = call.args.get("code", "")
    return code if isinstance(code, str) else ""


def _outcome(ran: Ran) -> Ended:
    if ran.late:
        return Ended.OUTCOME_DEADLINE_EXCEEDED
    return Ended.OUTCOME_FAILED if ran.status or ran.ended else Ended.OUTCOME_OK


def _told(ran: Ran) -> str:
    """Its output, and what put an end to it if it did not end by itself."""
    why = ran.ended or (f"signal {ran.status - 128}" if ran.status > 128 else "")
    between = "\n" if ran.output and not ran.output.endswith("\n") else ""
    return ran.output + (f"{between}[ended: {why}]\n" if why else "")
