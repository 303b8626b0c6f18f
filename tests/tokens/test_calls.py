"""Function calls and declarations: prompts with tools are what documents train, and text never ends a string of a call."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer

from pollux.content import Content, Document, FunctionCall, Text
from pollux.tokens.calls import QUOTE, declare
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import decode_parts, encode, encode_prompt
from pollux.tokens.vocabulary import Vocabulary

WEATHER = {
    "name": "weather",
    "description": "what the sky does, é",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION = Content("user", (Text("rain?"),))


def test_a_prompt_with_tools_begins_as_a_document_that_declares_them(vocabulary):
    call = Content("model", (FunctionCall("weather", {"city": "Oslo"}),))
    system = Content("system", (Text("be brief"),))
    document = encode(Document((declare([WEATHER]), system, QUESTION, call)), vocabulary, TokensConfig())
    prompt = encode_prompt([system, QUESTION], vocabulary, TokensConfig(), variables={"tools": [WEATHER]})
    assert document.ids[: len(prompt)].tolist() == prompt.ids.tolist()
    assert document.target[: len(prompt)].sum() == 0
    written = vocabulary.decode(document.ids[document.target > 0])
    assert written == '<call>{"name":"weather","args":{"city":"Oslo"}}</call><end_of_turn>'


def test_a_declaration_is_a_system_turn_of_json_without_spaces():
    wrapped = {"type": "function", "function": {"parameters": {}, "name": "stop", "unknown": 1}}
    turn = declare([WEATHER, wrapped])
    assert turn.role == "system"
    assert turn.parts[0].text.startswith(
        '{"functions":[{"name":"weather","description":"what the sky does, é","parameters":{"type":"object",'
    )
    assert json.loads(turn.parts[0].text) == {"functions": [WEATHER, {"name": "stop", "parameters": {}}]}


@pytest.mark.parametrize("variables", [{}, {"tools": []}, {"tools": None}])
def test_without_tools_a_prompt_declares_nothing(vocabulary, variables):
    plain = encode_prompt([QUESTION], vocabulary, TokensConfig())
    assert encode_prompt([QUESTION], vocabulary, TokensConfig(), variables=variables).ids.tolist() == plain.ids.tolist()


@pytest.mark.parametrize("tool", [{}, {"name": 3}, "weather", {"function": {"description": "nameless"}}])
def test_a_tool_without_a_name_is_refused(vocabulary, tool):
    with pytest.raises(ValueError, match="a tool is declared by its"):
        encode_prompt([QUESTION], vocabulary, TokensConfig(), variables={"tools": [tool]})


def test_text_that_spells_a_quotation_mark_does_not_end_a_string(vocabulary):
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(QUOTE, special=True)])
    quoting = Vocabulary(tokenizer)
    quote, words = tokenizer.token_to_id(QUOTE), quoting.encode_text
    said = f'say {QUOTE} or "'
    assert quote not in words(said)
    ids = [quoting.specials["<call>"], *words("call:f{a:"), quote, *words(said), quote, *words(",b:"), quote, quote, *words("}")]
    assert decode_parts([*ids, quoting.specials["</call>"]], quoting) == (FunctionCall("f", {"a": said, "b": ""}),)
    broken = [*ids[:-3], quoting.specials["</call>"]]
    assert decode_parts(broken, quoting) == (Text(quoting.decode(broken[1:-1])),)
