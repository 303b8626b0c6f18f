"""inspect-ai's google provider against a server: small evaluations with text, a picture, a schema and a tool."""

from __future__ import annotations

import base64

from checks import MODEL, URL, picture, run
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig, ResponseSchema
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Answer(BaseModel):
    number: int


@tool
def weather():
    async def execute(city: str) -> str:
        """Weather of a city.

        Args:
            city: Its name.
        """
        return f"rain in {city}"

    return execute


def evaluated(samples, solver=None, **config):
    """The log of an evaluation that came to its end, every sample scored and the tokens counted."""
    task = Task(samples, solver=solver or generate(), scorer=includes(), config=GenerateConfig(max_tokens=200, **config))
    model = f"google/{MODEL}"
    (log,) = eval(task, model=model, model_base_url=URL, log_dir="logs", display="none", max_retries=0, fail_on_error=True)
    assert log.status == "success", log.error
    assert len(log.samples) == len(samples) and all(sample.scores for sample in log.samples)
    used = log.stats.model_usage[model]
    assert used.input_tokens > 0 and used.output_tokens > 0
    return log


def questions() -> None:
    log = evaluated([Sample(f"what is the number after {n}?", target=str(n + 1)) for n in range(4)], temperature=0.0)
    assert all(sample.output.completion for sample in log.samples)


def picture_in_a_question() -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    asked = [ChatMessageUser(content=[ContentText(text="caption"), ContentImage(image=url)])]
    (sample,) = evaluated([Sample(asked, target="red")]).samples
    assert sample.output.completion


def answer_by_a_schema() -> None:
    schema = ResponseSchema(name="answer", json_schema=json_schema(Answer))
    (sample,) = evaluated([Sample("how many?", target="1")], response_schema=schema).samples
    assert isinstance(Answer.model_validate_json(sample.output.completion), Answer)


def tool_may_be_called() -> None:
    evaluated([Sample("Does it rain in Oslo?", target="rain")], solver=[use_tools(weather()), generate(tool_calls="single")])


def tool_must_be_called() -> None:
    solver = [use_tools(weather(), tool_choice="any"), generate(tool_calls="single")]
    (sample,) = evaluated([Sample("Does it rain in Oslo?", target="rain")], solver=solver).samples
    (call,) = [call for message in sample.messages for call in getattr(message, "tool_calls", None) or []]
    assert call.function == "weather" and isinstance(call.arguments["city"], str)


def log_probabilities() -> None:
    (sample,) = evaluated([Sample("hello", target="hello")], logprobs=True, top_logprobs=2).samples
    assert sample.output.choices[0].logprobs.content


run(questions, picture_in_a_question, answer_by_a_schema, tool_may_be_called, tool_must_be_called, log_probabilities)
