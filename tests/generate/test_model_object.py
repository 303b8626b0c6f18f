"""The Model object: folders, logits, embeddings, counts, chats, and one clear sentence for each mistake."""

from dataclasses import replace

import jax
import numpy as np
import PIL.Image
import pytest

import pollux
from pollux.content import Audio, Content, Document, Image, Text
from pollux.generate.chat import Chat
from pollux.generate.drafter import LookUp
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling
from pollux.model import decoder, folder
from pollux.tokens.codec import Codec, CodecConfig
from pollux.tokens.codec.model import init as codec_weights
from pollux.tokens.config import TokensConfig
from pollux.tokens.interleave import encode
from pollux.tokens.pack import single
from pollux.tokens.vocabulary import Vocabulary

SHORT = dict(seed=2, max_output_tokens=30)


@pytest.fixture(scope="module")
def picture():
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8))


def test_a_saved_folder_gives_the_same_model_back(model, tmp_path, picture):
    config = CodecConfig(size=(16, 16), form_levels=(4,), colour_levels=(2,), hidden=8)
    codec = Codec(config, codec_weights(config, seed=0))
    vocabulary = Vocabulary(model.vocabulary.tokenizer, codec.levels)
    kept = Model(
        model.params, model.config, model.tokens_config, vocabulary, codec, Sampling(temperature=0, stop=("zz",), max_output_tokens=9)
    )
    kept.save(tmp_path)
    loaded = pollux.load(tmp_path)
    assert folder.hash_params(loaded.params) == folder.hash_params(model.params)
    assert (loaded.config, loaded.tokens_config, loaded.sampling) == (kept.config, kept.tokens_config, kept.sampling)
    assert loaded.codec.config == config and loaded.vocabulary.code_levels == codec.levels
    turns = [Content("user", (Image(picture), Text("the star"))), Content("model", (Image(picture),))]
    np.testing.assert_array_equal(loaded.prompt(turns).ids, kept.prompt(turns).ids)
    assert loaded.generate("a").ids.tolist() == kept.generate("a").ids.tolist()


def test_a_folder_without_a_tokenizer_gives_logits_on_ids_and_says_what_is_missing(model, tmp_path):
    folder.save(tmp_path, model.params, model.config)
    bare = pollux.load(tmp_path)
    ids = model.prompt("the star").ids
    np.testing.assert_allclose(bare.logits(ids), model.logits("the star"), atol=1e-6)
    np.testing.assert_array_equal(bare.logits(ids.tolist()), bare.logits(ids))
    with pytest.raises(ValueError, match="tokenizer.json"):
        bare.generate("the star")
    with pytest.raises(ValueError, match="config.json"):
        pollux.load(tmp_path / "nowhere")


def test_a_wrong_sampling_default_names_its_file(model, tmp_path):
    Model(model.params, model.config, model.tokens_config, model.vocabulary).save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true}')
    with pytest.raises(ValueError, match="generation_config.json: there is no sampling setting do_sample"):
        pollux.load(tmp_path)


def test_load_converts_the_weights_and_bfloat16_generates(model, tmp_path):
    Model(model.params, model.config, model.tokens_config, Vocabulary(model.vocabulary.tokenizer)).save(tmp_path)
    half = pollux.load(tmp_path, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    scores = half.logits("the star")
    assert scores.dtype == np.float32 and scores.shape == model.logits("the star").shape
    assert np.corrcoef(scores.ravel(), model.logits("the star").ravel())[0, 1] > 0.99
    assert len(half.generate("the star", max_output_tokens=4).ids) == 4


def test_a_draft_is_a_folder_or_look_up(model, tmp_path):
    small = dict(tokens_config=model.tokens_config, vocabulary=Vocabulary(model.vocabulary.tokenizer))
    Model(model.params, model.config, **small).save(tmp_path)
    drafter = pollux.load(tmp_path, draft=tmp_path)._drafter
    assert drafter.config == model.config and folder.hash_params(drafter.params) == folder.hash_params(model.params)
    assert pollux.load(tmp_path, draft="lookup")._drafter == LookUp() and pollux.load(tmp_path)._drafter is None
    for draft, sentence in (
        ("look", 'must be a Model or "lookup"'),
        (Model(model.params, model.config, model.tokens_config), "their words differ"),
        (Model(model.params, model.config, TokensConfig(), small["vocabulary"]), "their ways to read media differ"),
        (Model(model.params, replace(model.config, vocab_size=400), **small), "'small' cannot draft for 'small': their ids differ"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Model(model.params, model.config, **small, draft=draft)
    with pytest.raises(ValueError, match="config.json"):
        pollux.load(tmp_path, draft=tmp_path / "nowhere")


def _states(model, sequence):
    """float64 [T, D], the hidden states by a plain forward pass without padding."""
    forward = jax.jit(lambda params, inputs: decoder.hidden(params, model.config, inputs).hidden[0])
    return np.asarray(forward(model.params, single(sequence).inputs), np.float64)


def test_logits_of_contents_are_those_of_one_packed_row(model, picture):
    contents = [picture, "the star"]
    expected = _states(model, model.prompt(contents))
    scores = model.logits(contents)
    assert scores.dtype == np.float32 and scores.shape == (len(model.prompt(contents)), model.config.vocab_size)
    np.testing.assert_allclose(scores, expected @ model.params["embed"].T, atol=1e-4)


def test_token_counts_are_the_usage_of_the_prompt(model, picture):
    sound = Audio(np.zeros(1600, np.float32), 16_000)
    counts = model.count_tokens([picture, sound, "the star"])
    assert counts["image"] == 2 + 4 and counts["audio"] == 2 + 3, "markers and patches of 8x8, frames of 40 ms"
    assert counts["text"] == 4 + len(model.vocabulary.encode_text("the star")), "<bos> <user> <end_of_turn> <model>"
    result = model.generate([picture, sound, "the star"], max_output_tokens=3)
    assert result.usage.prompt == counts and result.usage.prompt_tokens == sum(counts.values())
    assert result.usage.output_tokens == 3


def test_embedding_of_text_is_its_mean_hidden_state_as_in_an_aligned_branch(model, picture):
    document = Document((Content("user", (Image(picture),)),), align="the star")
    sequence = encode(document, model.vocabulary, model.tokens_config)
    states = _states(model, sequence)
    for contents, side in ((picture, 1), ("the star", 2)):
        mean = states[sequence.pool == side].mean(0)
        embedding = model.embed(contents)
        assert embedding.dtype == np.float32 and abs(np.linalg.norm(embedding) - 1) < 1e-6
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_chat_keeps_the_turns(model):
    chat = Chat(model, Content("system", (Text("a big"),)))
    first = chat.send("the star", **SHORT)
    assert [turn.role for turn in chat.contents] == ["system", "user", "model"]
    turns = [*chat.contents, Content("user", (Text("blue"),))]
    pieces = "".join(part.text for part in chat.stream("blue", **SHORT) if isinstance(part, Text))
    assert pieces == model.generate(turns, **SHORT).text == "".join(part.text for part in chat.contents[-1].parts if isinstance(part, Text))
    assert chat.contents[2].parts == first.parts and len(chat.contents) == 5


def test_repr_says_what_the_model_is(model):
    text = repr(model)
    assert (
        "'small'" in text and "image, audio, video" in text and f"{sum(x.size for x in jax.tree.leaves(model.params)):,} parameters" in text
    )


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda m: m.generate("a", temprature=1), "no sampling setting temprature"),
        (lambda m: m.generate("a", top_p=2), "top_p is 2"),
        (lambda m: m.generate_many(["a", "b"], seeds=[1]), "2 prompts need as many seeds, got 1"),
        (lambda m: m.logits([10**6]), r"ids must be 1 or more integers in \[0, "),
        (lambda m: m.embed(Content("user", ())), "nothing to embed"),
        (lambda m: Model(m.params, replace(m.config, vocab_size=30), vocabulary=m.vocabulary).generate("a"), "vocabulary has 327 ids"),
    ],
)
def test_a_mistake_gets_one_clear_sentence(model, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(model)
