"""Which sentences of an answer are said to rest on which passages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux.serve.tools.grounding import MOST, Words, joined, metadata, scores, sentences, supports

OWLS = "Owls are birds of prey. Most owls hunt at night, and they turn their heads by up to 270 degrees. A group is called a parliament."
BEES = "Honey bees dance to tell each other where flowers are. A hive holds 40,000 bees in summer."
PASSAGES = [OWLS, BEES]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Most owls hunt at night.", [("Most owls hunt at night.", 0)]),
        ("An owl hunts at night, and turns its head by up to 270 degrees.", [(..., 0)]),
        ("Bees dance to tell each other where flowers are!", [(..., 1)]),
        ("Most owls hunt at night, and they turn their heads by up to 360 degrees.", []),  # the number is another
        ("A hive holds 40,000 bees in summer.", [(..., 1)]),
        ("Elephants never forget what their mothers taught them.", []),
        ("They are. It is.", []),
        ("", []),
    ],
)
def test_a_sentence_is_supported_by_the_passage_that_says_it(answer, expected):
    found = [(answer[one.start : one.end], [i for i, _ in one.passages]) for one in supports(answer, PASSAGES)]
    assert found == [(answer if text is ... else text, [i]) for text, i in expected]


def test_segments_count_bytes_of_the_answer():
    answer = "Ünïcödé 🦉 zuerst. Most owls hunt at night. Schluß."
    found = metadata(answer, PASSAGES, [{"web": {"uri": "a"}}, {"web": {"uri": "b"}}], ["owls?"])
    [support] = found["groundingSupports"]
    segment = support["segment"]
    assert answer.encode()[segment["startIndex"] : segment["endIndex"]].decode() == segment["text"] == "Most owls hunt at night."
    assert support["groundingChunkIndices"] == [0] and 0.75 <= support["confidenceScores"][0] <= 1
    assert found["webSearchQueries"] == ["owls?"] and len(found["groundingChunks"]) == 2


def test_a_sentence_that_several_passages_say_names_them_all():
    [one] = supports("Most owls hunt at night.", [BEES, OWLS, "It is known that most owls hunt at night."])
    assert {i for i, _ in one.passages} == {1, 2}
    [one] = supports("Most owls hunt at night.", ["Most owls may hunt at night.", *["Most owls hunt at night."] * MOST])
    assert [i for i, _ in one.passages] == [1, 2, 3] and MOST == 3


def test_words_that_are_not_there_lower_the_confidence():
    full, part = (supports(text, PASSAGES)[0].passages[0][1] for text in ("Most owls hunt at night", "Most owls hunt at night, secretly"))
    assert full > part


def test_a_missing_word_that_other_passages_have_says_less_than_one_that_none_has():
    known = [Words(text) for text in PASSAGES]
    common, rare = (scores(f"Most owls hunt at night {word}", known)[0] for word in ("honey", "secretly"))
    assert common > rare


@given(st.text(), st.lists(st.text(), max_size=3))
def test_supports_are_pieces_of_the_answer_in_its_order(answer, passages):
    end = 0
    for one in supports(answer, passages):
        assert end <= one.start < one.end <= len(answer)
        assert all(0 <= i < len(passages) and 0.75 <= confidence <= 1 for i, confidence in one.passages)
        end = one.end


@given(st.text())
def test_no_answer_rests_on_passages_without_its_words(answer):
    assert supports(answer.replace("z", ""), ["zzz zzzz zzzzz"]) == []


def test_sentences_are_found_in_lists_and_around_numbers():
    text = "* First, v1.5 is out. Really?\n- Second line\n\n吾輩は猫である。名前はまだ無い。"
    found = [text[start:end] for start, end in sentences(text)]
    assert found == ["First, v1.5 is out.", "Really?", "Second line", "吾輩は猫である。", "名前はまだ無い。"]


def test_the_grounding_of_two_tools_becomes_one():
    ours = metadata("Most owls hunt at night. Bees dance to tell each other where flowers are.", [OWLS], [{"web": {"uri": "a"}}], ["q"])
    theirs = metadata("Most owls hunt at night. Bees dance to tell each other where flowers are.", [BEES], [{"web": {"uri": "b"}}])
    both = joined({"grounding_metadata": ours}, {"grounding_metadata": theirs, "url_context_metadata": {}})
    assert both["url_context_metadata"] == {}
    assert [chunk["web"]["uri"] for chunk in both["grounding_metadata"]["groundingChunks"]] == ["a", "b"]
    assert [one["groundingChunkIndices"] for one in both["grounding_metadata"]["groundingSupports"]] == [[0], [1]]
    assert joined({}, {"grounding_metadata": ours}) == {"grounding_metadata": ours}
