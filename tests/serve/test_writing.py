"""Pieces of an engine become candidates: thoughts apart, calls whole, and nothing that belongs together torn."""

import dataclasses

import numpy as np
import pytest
from small_model import small_model

from pollux.content import FunctionCall, Image, Text
from pollux.generate.model import Model
from pollux.generate.requests import Piece, Request
from pollux.generate.sampler import Sampling
from pollux.serve.answer import usage
from pollux.serve.prepare import Plan
from pollux.serve.safety import Safety, Verdict
from pollux.serve.server import Served
from pollux.serve.wire.enums import FinishReason, ResponseModality
from pollux.serve.writing import Writing
from pollux.tokens.vocabulary import SPECIAL_IDS, Vocabulary

BOTH = frozenset({ResponseModality.TEXT, ResponseModality.IMAGE})
THOUGHT, END_THOUGHT, CALL, END_CALL, STOP = (SPECIAL_IDS[name] for name in ("<audio>", "</audio>", "<call>", "</call>", "<end_of_turn>"))


@pytest.fixture(scope="module")
def model():
    """One that thinks, between tokens that are otherwise of no use in an answer."""
    plain = small_model()
    specials = SPECIAL_IDS | {"<thought>": THOUGHT, "</thought>": END_THOUGHT}
    vocabulary = Vocabulary(plain.vocabulary.tokenizer, plain.vocabulary.code_levels, specials)
    return Model(plain.params, plain.config, plain.tokens_config, vocabulary, plain.codec)


def plan(model, thoughts=True, logprobs=False, modalities=BOTH):
    request = Request(model.prompt("a"), Sampling())
    return Plan(Served("small", model, None), request, Safety(None, {}), Verdict(), {"text": 5}, modalities, thoughts, logprobs, ())


def piece(ids, *parts, finish="", **more):
    return Piece(0, parts, tuple(ids), (-1.0,) * len(ids), more.get("top", ()), finish)


def parts_of(candidates):
    return [(part.text, part.thought) for c in candidates if c for part in c.content.parts]


def run(writing, *pieces):
    """What is given out after each piece."""
    given = []
    for one in pieces:
        writing.take(one)
        given.append(writing.give())
    return given


def test_thoughts_are_parts_of_their_own_and_counted_apart(model):
    words = model.vocabulary.encode_text("thought\na big circle")
    answer = model.vocabulary.encode_text("blue")
    ids = [THOUGHT, *words, END_THOUGHT, *answer, STOP]
    shown, hidden = (Writing(plan(model, thoughts), 0) for thoughts in (True, False))
    pieces = [piece(ids[:6]), piece(ids[6 : len(words) + 2]), piece([*answer, STOP], Text("blue"), finish="stop")]
    given = parts_of(run(shown, *pieces))
    assert "".join(text for text, thought in given if thought) == "a big circle" and given[-1] == ("blue", False)
    assert parts_of(run(hidden, *pieces)) == [("blue", False)]
    for writing in (shown, hidden):
        used = usage({"text": 5}, [writing])
        assert used.thoughts_token_count == len(words) + 2 and used.candidates_token_count == len(answer) + 1
        assert used.total_token_count == 5 + len(ids)


def test_half_a_character_of_a_thought_waits_for_the_rest(model):
    ids = model.vocabulary.encode_text("é")
    assert len(ids) == 2
    given = run(Writing(plan(model), 0), piece([THOUGHT, ids[0]]), piece([ids[1]]), piece([END_THOUGHT, STOP], finish="stop"))
    assert parts_of(given) == [("é", True)]


def test_the_last_letter_waits_for_what_comes_next(model):
    writing = Writing(plan(model), 0)
    given = run(writing, piece([300], Text("a big")), piece([301]), piece([302], Text(" circle")), piece([STOP], finish="stop"))
    assert [parts_of([c]) for c in given] == [[("a bi", False)], [], [("g circl", False)], [("e", False)]]
    assert [c and c.finish_reason for c in given] == [None, None, None, FinishReason.STOP]


def test_a_call_goes_out_with_the_end_or_with_what_follows(model):
    call = FunctionCall("f", {"a": 1})
    ids = [CALL, *model.vocabulary.encode_text('{"name":"f","args":{"a":1}}'), END_CALL]
    given = run(Writing(plan(model), 0), piece(ids, Text("so: "), call), piece([STOP], finish="stop"))
    assert [part.text or part.function_call.name for c in given for part in c.content.parts] == ["so: ", "f"]
    assert given[1].finish_reason == FinishReason.STOP


def test_a_call_that_cannot_be_read_is_said_to_be_malformed(model):
    written = '{"name": f'
    ids = [CALL, *model.vocabulary.encode_text(written), END_CALL, STOP]
    (candidate,) = run(Writing(plan(model), 0), piece(ids, Text("I call "), Text(written), finish="stop"))
    assert candidate.finish_reason == FinishReason.MALFORMED_FUNCTION_CALL and written in candidate.finish_message
    assert parts_of([candidate]) == [("I call ", False)]


def test_what_was_not_asked_for_is_left_out(model):
    picture = Image(np.zeros((4, 6, 3), np.uint8))
    for modality, kept in ((ResponseModality.TEXT, ["text"]), (ResponseModality.IMAGE, ["inline_data"])):
        writing = Writing(plan(model, modalities=frozenset({modality})), 0)
        (candidate,) = run(writing, piece([300, STOP], Text("a"), picture, finish="stop"))
        found = [f.name for part in candidate.content.parts for f in dataclasses.fields(part) if getattr(part, f.name)]
        assert found == kept and candidate.finish_reason == FinishReason.STOP
    (candidate,) = run(Writing(plan(model, modalities=frozenset({ResponseModality.IMAGE})), 0), piece([STOP], Text("a"), finish="stop"))
    assert candidate.finish_reason == FinishReason.NO_IMAGE and not candidate.content.parts


def test_logprobs_come_with_the_chunk_of_their_tokens(model):
    writing = Writing(plan(model, logprobs=True), 0)
    tops = [(((300, -1.0), (301, -2.0)),), (((STOP, -1.0), (302, -3.0)),)]
    given = run(writing, piece([300], Text("ab"), top=tops[0]), piece([STOP], finish="stop", top=tops[1]))
    assert [[t.token_id for t in c.logprobs_result.chosen_candidates] for c in given] == [[300], [STOP]]
    assert [t.token_id for t in given[1].logprobs_result.top_candidates[0].candidates] == [STOP, 302]
    assert given[1].avg_logprobs == -1.0 and given[0].avg_logprobs is None


def test_nothing_is_added_after_the_end(model):
    writing = Writing(plan(model), 0)
    run(writing, piece([STOP], Text("a"), finish="stop"))
    writing.take(piece([300], Text("more")))
    assert writing.tokens == 1 and writing.give() is None
