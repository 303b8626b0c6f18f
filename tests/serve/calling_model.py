"""A small model that has learnt a handful of conversations by heart, in some of which it calls tools: what a test of tools asks it.

It is taught here, in seconds, through the same documents, packing and step as every training run.
"""

import functools
import json
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from pollux.content import Content, Document, FunctionCall, FunctionResponse, Text
from pollux.data.mixture import DataConfig, SourceConfig
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.serve.tools.code_execution import DECLARATION, FUNCTION
from pollux.tokens.calls import declare
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode
from pollux.tokens.pack import Packer
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.config import OptimizerConfig, TrainConfig
from pollux.train.step import initial_state, make_step

WEATHER = {
    "name": "weather",
    "description": "what the sky does",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
LATE = "[ended: 2 seconds are over]\n"  # what the sandbox of these conversations says


def user(text: str) -> Content:
    return Content("user", (Text(text),))


def says(text: str) -> Content:
    return Content("model", (Text(text),))


def runs(code: str, before: str = "") -> Content:
    return Content("model", (*([Text(before)] if before else []), FunctionCall(FUNCTION, {"code": code})))


def told(output: str, outcome: str = "OUTCOME_OK") -> Content:
    return Content("tool", (FunctionResponse(FUNCTION, {"outcome": outcome, "output": output}),))


# A red pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
PICTURE = f"import base64\nopen('a.png','wb').write(base64.b64decode('{PNG}'))"
NOTE = "Note: today the sky is green."  # what a tool finds before the answer
# Questions and what the model has learnt to do about them when it may run code.
WITH_CODE: dict[str, Sequence[Content]] = {
    "what is 6 times 7?": (runs("print(6*7)", "Let me see. "), told("42\n"), says("It is 42.")),
    "what is 2 to the 9?": (runs("print(2**9)"), told("512\n"), says("It is 512.")),
    "fail": (runs("exit(3)"), told("", "OUTCOME_FAILED"), says("That went wrong.")),
    "wait": (runs("while 1:0"), told(LATE, "OUTCOME_DEADLINE_EXCEEDED"), says("It took too long.")),
    "draw": (runs(PICTURE), told(""), says("Here you are.")),
    "count": (runs("print(1)"), told("1\n"), runs("print(2)"), told("2\n"), runs("print(3)"), told("3\n"), says("One, two, three.")),
    "both": (
        Content("model", (FunctionCall(FUNCTION, {"code": "print(4)"}), FunctionCall(FUNCTION, {"code": "print(5)"}))),
        Content("tool", (*told("4\n").parts, *told("5\n").parts)),
        says("Four and five."),
    ),
    "hello": (says("Hi."),),
}
# The same beside a function of the client's.
WITH_WEATHER: dict[str, Sequence[Content]] = {
    "rain?": (Content("model", (FunctionCall("weather", {"city": "Oslo"}),)),),
    "what is 6 times 7?": (runs("print(6*7)"), told("42\n"), says("It is 42.")),
    "six and rain?": (Content("model", (FunctionCall(FUNCTION, {"code": "print(6)"}), FunctionCall("weather", {"city": "Rome"}))),),
}
# After code in an earlier turn, as a client sends it again.
AGAIN = ((*WITH_CODE["what is 2 to the 9?"], user("and half of it?"), runs("print(256)"), told("256\n"), says("It is 256.")),)


@functools.cache
def calling_model() -> Model:
    code, both = declare([DECLARATION]), declare([WEATHER, DECLARATION])
    documents = [Document((code, user(question), *turns)) for question, turns in WITH_CODE.items()]
    documents += [Document((both, user(question), *turns)) for question, turns in WITH_WEATHER.items()]
    documents += [Document((code, user("what is 2 to the 9?"), *turns)) for turns in AGAIN]
    documents += [Document((user("hello"), says("Hello."))), Document((user(NOTE), user("the sky?"), says("It is green.")))]
    return taught(documents)


def taught(documents: Sequence[Document], steps: int = 100) -> Model:
    """A model that goes on with any of these documents as it is written, at temperature 0."""
    vocabulary = Vocabulary(train_bpe((_text(document) for document in documents), 600))
    sequences = [encode(document, vocabulary, TokensConfig()) for document in documents]
    layer = LayerConfig(AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16), FeedForwardConfig(128))
    model = ModelConfig("calls", vocabulary.size, 64, (layer,), num_groups=2, max_positions=1024)
    longest = max(map(len, sequences))
    packer = Packer(rows=len(sequences), row_length=longest, targets_per_row=longest, soft_per_batch={}, config=TokensConfig())
    assert all(packer.add(sequence) for sequence in sorted(sequences, key=len, reverse=True))
    batch = packer.take()
    used = (batch.inputs.segment > 0).any(1)
    batch = jax.tree.map(lambda leaf: leaf[None, used], batch)
    config = TrainConfig(
        model,
        TokensConfig(),
        DataConfig((SourceConfig("folder", path="taught by hand"),)),
        vocabulary="",
        rows=int(used.sum()),
        row_length=longest,
        targets_per_row=longest,
        steps=steps,
        optimizer=OptimizerConfig("adamw", learning_rate=4e-3),
    )
    step, state = jax.jit(make_step(config), donate_argnums=0), initial_state(config)
    for i in range(steps):
        state, metrics = step(state, batch, np.float32(min(1.0, (i + 1) / 10) * (1 - i / steps)))
    return Model(jax.tree.map(np.asarray, state.params), model, TokensConfig(), vocabulary, None, Sampling(temperature=0.0))


def _text(document: Document) -> str:
    return "".join(
        part.text if isinstance(part, Text) else json.dumps(_plain(part), ensure_ascii=False, separators=(",", ":"))
        for content in document.contents
        for part in content.parts
    )


def _plain(part: FunctionCall | FunctionResponse) -> Mapping[str, object]:
    return {"name": part.name} | ({"args": part.args} if isinstance(part, FunctionCall) else {"response": part.response})
