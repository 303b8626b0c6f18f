"""Drawings: the ids of a picture always follow its grammar, guidance is its formula, and pictures come out of the answer."""

import itertools

import numpy as np
import pytest

from pollux.content import Content, Image, Text
from pollux.generate.answer import Answer
from pollux.generate.requests import Job, Request
from pollux.generate.rows import Row, samplers
from pollux.generate.sampler import Sampling
from pollux.tokens.vocabulary import SPECIAL_IDS

BOS, MODEL, DRAW, CLOSE = (SPECIAL_IDS[name] for name in ("<bos>", "<model>", "<draw>", "</draw>"))
DIGITS = 4  # two codes of two digits


@pytest.fixture(scope="module")
def artist(biased_to):
    return biased_to("<draw>")


@pytest.fixture(scope="module")
def answers(artist):
    return artist.generate_many(["the star", "blue", "a big"] * 4, seeds=range(12), temperature=1.2, max_output_tokens=40)


def _drawings(ids):
    """Start of every span of DIGITS ids between <draw> and </draw>."""
    return [i + 1 for i in np.flatnonzero(np.array(ids) == DRAW) if i + DIGITS + 1 < len(ids)]


def test_the_ids_of_a_drawing_follow_the_grammar_and_stay_inside_it(answers, artist):
    offset = artist.vocabulary.code_offset
    ranges = [range(offset, offset + 4), range(offset + 4, offset + 7)] * 2 + [[CLOSE]]
    assert sum(len(_drawings(answer.ids)) for answer in answers) >= 10
    for answer in answers:
        inside = itertools.chain()
        for i in answer.ids.tolist():
            expected = next(inside, None)
            if expected is not None:
                assert i in expected
            else:
                assert i < offset and i != CLOSE
                inside = iter(ranges) if i == DRAW else inside


def test_pictures_are_the_decoded_codes_in_their_place_among_the_parts(answers, artist):
    for answer in answers:
        starts = _drawings(answer.ids)
        images = [part for part in answer.parts if isinstance(part, Image)]
        assert len(images) == len(answer.images) == len(starts)
        for start, image, pil in zip(starts, images, answer.images, strict=True):
            codes = artist.vocabulary.codes(answer.ids[start : start + DIGITS])
            np.testing.assert_array_equal(image.pixels(), artist.codec.decode(codes[None])[0])
            np.testing.assert_array_equal(np.asarray(pil), image.pixels())
    assert any(isinstance(a, Text) and isinstance(b, Image) for answer in answers for a, b in itertools.pairwise(answer.parts))


def test_usage_counts_drawn_ids_apart_from_text(answers, artist):
    for answer in answers:
        drawn = int(sum(i >= artist.vocabulary.code_offset or i == CLOSE for i in answer.ids))
        assert answer.usage.output.get("draw", 0) == drawn and answer.usage.output_tokens == len(answer.ids)


def test_guidance_is_its_formula_inside_a_drawing(artist):
    guidance, text = 20.0, "a big red one"
    prompt = artist.prompt(text).ids
    answer = artist.generate(text, temperature=0, guidance=guidance, max_output_tokens=30)
    starts = _drawings(answer.ids)
    assert len(starts) >= 2, "the test needs an answer with two drawings"
    drawings = [[DRAW, *answer.ids[start : start + DIGITS].tolist(), CLOSE] for start in starts]
    conditional = artist.logits([*prompt, *answer.ids])[len(prompt) - 1 :]
    unconditional = artist.logits([BOS, MODEL, *itertools.chain(*drawings)])[2:]
    differs = 0
    for i, start in enumerate(starts):
        for n in range(DIGITS):
            low = artist.vocabulary.code_offset + (n % 2) * 4
            digit = slice(low, low + (4, 3)[n % 2])
            c, u = conditional[start + n, digit], unconditional[i * (DIGITS + 2) + n, digit]
            assert answer.ids[start + n] == low + (u + guidance * (c - u)).argmax()
            differs += (u + guidance * (c - u)).argmax() != c.argmax()
    assert differs > 0, "guidance changed nothing, so that this test shows nothing"


def test_guidance_leaves_text_alone(model):
    free, guided = (model.generate("a big", temperature=0, guidance=guidance, max_output_tokens=30) for guidance in (1.0, 20.0))
    assert DRAW not in free.ids
    np.testing.assert_array_equal(guided.ids, free.ids)


def test_guided_and_unguided_rows_of_a_batch_keep_apart(artist):
    prompts = [artist.prompt("the star"), artist.prompt("blue")]
    settings = [artist._sampling(dict(temperature=0, guidance=g, max_output_tokens=30)) for g in (1.0, 3.0)]
    together = artist._engine.generate(prompts, settings)
    for prompt, setting, result in zip(prompts, settings, together, strict=True):
        np.testing.assert_array_equal(artist._engine.generate([prompt], [setting])[0].ids, result.ids)


def test_penalties_do_not_see_the_codes_of_an_earlier_drawing(artist):
    earlier = Content("model", (Image(np.full((4, 6, 3), 100, np.uint8)),))
    turns = [Content("user", (Text("a"),)), earlier, Content("user", (Text("blue"),))]
    prompt = artist.prompt(turns)
    sampling = Sampling(repetition_penalty=2.0)
    row = Row(Job(Request(prompt, sampling)), 0, prompt, sampling, Answer(sampling, {}, artist.vocabulary, artist.codec))
    seen = samplers([row], 0, artist.vocabulary, artist.config.vocab_size).in_prompt[0]
    assert (prompt.ids >= artist.vocabulary.code_offset).sum() == DIGITS and not seen[artist.vocabulary.code_offset :].any()
    assert seen[artist.prompt("blue").ids].all()


def test_a_drawing_cut_by_max_output_tokens_is_left_out(artist):
    whole = artist.generate("the star", temperature=0, max_output_tokens=30)
    start = _drawings(whole.ids)[0]
    cut = artist.generate("the star", temperature=0, max_output_tokens=int(start) + 2)
    np.testing.assert_array_equal(cut.ids, whole.ids[: start + 2])
    assert cut.finish_reason == "length" and cut.images == []


def test_a_stream_of_drawings_adds_up_to_the_answer(artist, answers):
    stream = artist.stream("the star", seed=0, temperature=1.2, max_output_tokens=40)
    pieces = list(stream)
    merged = []
    for piece in pieces:
        if isinstance(piece, Text) and merged and isinstance(merged[-1], str):
            merged[-1] += piece.text
        else:
            merged.append(piece.text if isinstance(piece, Text) else piece.pixels().tobytes())
    assert merged == [part.text if isinstance(part, Text) else part.pixels().tobytes() for part in answers[0].parts]


def test_a_model_without_a_codec_never_opens_a_drawing(artist):
    blind = type(artist)(artist.params, artist.config, artist.tokens_config, artist.vocabulary)
    result = blind.generate("the star", temperature=0, max_output_tokens=30)
    assert DRAW not in result.ids and result.images == []
