"""Conversations with functions, and the talk beside them: what is said follows from what is declared, asked and answered."""

import json
import re

import numpy as np

from pollux.content import FunctionCall, FunctionResponse, Text
from pollux.data.world import World
from pollux.data.world.talk import ECHO_PROMPTS, facts, story
from pollux.tokens.calls import read_call
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode, encode_prompt
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary

DOCUMENTS = [World().document("call", index) for index in range(300)]


def turns(role):
    return [turn for document in DOCUMENTS for turn in document.contents if turn.role == role]


def calls():
    """(declaration, question, call) of all calls, with the question that was asked before it."""
    for document in DOCUMENTS:
        functions = {one["name"]: one for one in json.loads(document.contents[0].parts[0].text)["functions"]}
        for before, turn in zip(document.contents, document.contents[1:], strict=False):
            for part in turn.parts:
                if isinstance(part, FunctionCall):
                    yield functions[part.name], before.parts[0].text, part


def values(args):
    """The leaves of arguments."""
    if isinstance(args, dict):
        return [leaf for value in args.values() for leaf in values(value)]
    return [leaf for value in args for leaf in values(value)] if isinstance(args, list) else [args]


def fits(value, schema):
    """Whether a value is one of the schemas that functions are declared with; all their properties are required."""
    if schema["type"] == "object":
        inner = schema["properties"]
        return set(value) == set(inner) == set(schema["required"]) and all(fits(value[name], inner[name]) for name in inner)
    if schema["type"] == "array":
        return bool(value) and all(fits(one, schema["items"]) for one in value)
    kind = {"string": str, "integer": int, "number": (int, float), "boolean": bool}[schema["type"]]
    return isinstance(value, kind) and isinstance(value, bool) == (schema["type"] == "boolean") and value in schema.get("enum", [value])


def test_only_declared_functions_are_called_with_the_arguments_they_take():
    assert sum(1 for _ in calls()) > 200
    for declaration, _, call in calls():
        assert fits(call.args, declaration["parameters"]), (declaration, call)


def test_arguments_stand_in_the_question_as_they_are_and_in_its_order():
    for _, question, call in calls():
        at = 0
        for value in values(call.args):
            if not isinstance(value, bool):
                at = question.lower().find(str(value).lower(), at)
                assert at >= 0, (question, call)
                at += len(str(value))


def test_results_answer_the_calls_before_them_and_are_read_back():
    for document in DOCUMENTS:
        said = document.contents
        for i, turn in enumerate(said):
            if turn.role == "tool":
                assert [part.name for part in turn.parts] == [part.name for part in said[i - 1].parts]
                answer = said[i + 1].parts[0].text
                for part in turn.parts:
                    assert isinstance(part, FunctionResponse)
                    (value,) = part.response.values()
                    assert value is True or str(value) in answer, (part, answer)


def test_what_is_trained_is_what_a_prompt_with_these_functions_begins_with():
    vocabulary = Vocabulary(train_bpe(["what is the weather in a city"], 300))
    document = next(one for one in DOCUMENTS if len(one.contents) > 3 and one.contents[3].role == "tool")
    functions = json.loads(document.contents[0].parts[0].text)["functions"]
    prompt = encode_prompt(document.contents[1:2], vocabulary, TokensConfig(), variables={"tools": functions})
    trained = encode(document, vocabulary, TokensConfig())
    assert len(prompt) > 20 and np.array_equal(trained.ids[: len(prompt)], prompt.ids)


def test_a_question_for_which_nothing_is_declared_is_said_back_and_not_a_call():
    declined, known = 0, 0
    for document in DOCUMENTS:
        names = {one["name"] for one in json.loads(document.contents[0].parts[0].text)["functions"]}
        for asked, turn in zip(document.contents[1:], document.contents[2:], strict=False):
            said = getattr(turn.parts[0], "text", "")
            if turn.role == "model" and said.startswith("i have no"):
                question = said.removeprefix("i have no function for ")
                assert asked.role == "user" and question.lower() in asked.parts[0].text.lower()
                assert len(turn.parts) == 1
                words = set(re.findall("[a-z]{3,}", question)) - {"the", "what", "set", "turn", "how", "tell", "give"}
                declined, known = declined + 1, known + any(word in name for word in words for name in names)
    assert declined > 5 and known < declined / 4  # two functions may be about the same


def test_there_is_no_end_of_names():
    names = {declaration["name"] for declaration, _, _ in calls()}
    texts = {str(leaf) for _, _, call in calls() for leaf in values(call.args)}
    assert len(names) > 150 and len(texts) > 150


def test_documents_are_functions_of_their_index():
    assert [World().document("talk", 5), World().document("call", 7)] == [World().document("talk", 5), DOCUMENTS[7]]


def test_words_that_are_to_be_said_again_are_said_again():
    prompts = re.compile(
        "|".join(re.escape(prompt).replace(r"\{\}", r"(.+?)[.?]?") for prompt in sorted(ECHO_PROMPTS, key=len, reverse=True)), re.IGNORECASE
    )
    echoed = 0
    for index in range(100):
        turns = World().document("talk", index).contents
        for asked, said in zip(turns[::2], turns[1::2], strict=True):
            text = asked.parts[0].text
            if (match := prompts.fullmatch(text)) and "story" not in text:
                echoed += 1
                assert said.parts[0].text in match.groups()
    assert echoed > 50


def test_a_story_has_as_many_sentences_as_were_asked_for():
    asked = 0
    for seed in range(200):
        prompt, text = story(np.random.default_rng(seed))
        if number := re.search(r"in (\d) sentences", prompt):
            asked += 1
            assert text.count(".") == int(number[1])
    assert asked > 20


def test_facts_are_json_without_empty_values():
    for seed in range(200):
        _, text = facts(np.random.default_rng(seed))
        assert all(value not in ("", [], {}, None) for value in values(json.loads(text))) and "[]" not in text
        assert isinstance(read_call(text), Text)
