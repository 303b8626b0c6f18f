"""Text ids and image-code ids: lossless, and no text can forge a special token."""

import pickle
import random

import numpy as np
import pytest

from pollux.tokens.text import MINIMUM_SIZE, train_bpe
from pollux.tokens.vocabulary import SPECIALS, Vocabulary


def random_text(rng: random.Random) -> str:
    def character() -> str:
        code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)])
        return chr(code) if not 0xD800 <= code < 0xE000 else "\x00"

    pieces = [
        "".join(character() for _ in range(rng.randrange(12))),
        rng.choice(SPECIALS),
        rng.choice([" ", "\n\n", "\r\n", "\t ", "", "  "]),
    ]
    return "".join(rng.sample(pieces * 2, 6))


def test_any_unicode_text_survives_a_round_trip(vocabulary):
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng)
        assert vocabulary.decode(vocabulary.encode_text(text)) == text


def test_every_byte_of_utf8_has_an_id_without_training():
    vocabulary = Vocabulary(train_bpe([], MINIMUM_SIZE))
    assert vocabulary.size == MINIMUM_SIZE
    assert len(vocabulary.encode_text("é🙂")) == 6
    assert vocabulary.decode(vocabulary.encode_text("é🙂")) == "é🙂"


@pytest.mark.parametrize("special", SPECIALS)
def test_a_text_that_spells_a_special_token_is_text(vocabulary, special):
    ids = vocabulary.encode_text(f"x{special}{special} y")
    assert min(ids) >= len(SPECIALS)
    assert vocabulary.decode(ids) == f"x{special}{special} y"


def test_special_spellings_in_the_training_text_are_still_text():
    vocabulary = Vocabulary(train_bpe(["<bos><end_of_turn> <bos>"] * 50, 400))
    assert min(vocabulary.encode_text("<bos><end_of_turn> <bos>")) >= len(SPECIALS)


def test_special_tokens_have_the_first_ids_in_order_and_are_spelled_by_decode(vocabulary):
    assert [vocabulary.tokenizer.token_to_id(name) for name in SPECIALS] == list(range(len(SPECIALS)))
    assert vocabulary.decode([1, *vocabulary.encode_text("hi"), 2]) == "<bos>hi<eos>"


def test_training_merges_frequent_words_and_never_digits(vocabulary):
    assert len(vocabulary.encode_text(" circle")) == 1
    assert len(vocabulary.encode_text("1234")) == 4


def test_a_lone_surrogate_is_refused_in_one_sentence(vocabulary):
    with pytest.raises(ValueError, match="valid Unicode"):
        vocabulary.encode_text("a\ud800")


def test_saved_and_loaded_vocabulary_gives_the_same_ids(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path, vocabulary.code_levels)
    assert loaded.size == vocabulary.size
    assert loaded.encode_text("a red <bos> circle") == vocabulary.encode_text("a red <bos> circle")


def test_a_worker_process_encodes_the_same(vocabulary):
    sent = pickle.loads(pickle.dumps(vocabulary))
    assert sent.encode_text("a <bos> b") == vocabulary.encode_text("a <bos> b")
    assert sent.size == vocabulary.size


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        Vocabulary.load(tmp_path)


def test_a_foreign_tokenizer_is_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="<pad>"):
        Vocabulary(Tokenizer(models.BPE()))


def test_a_vocabulary_too_small_for_bytes_is_refused():
    with pytest.raises(ValueError, match=str(MINIMUM_SIZE)):
        train_bpe(["a"], 100)


def test_code_digits_have_the_ids_of_the_formula(vocabulary):
    vocabulary = Vocabulary(vocabulary.tokenizer, code_levels=(5, 3))
    start = vocabulary.tokenizer.get_vocab_size()
    ids = vocabulary.code_ids(np.array([[0, 0], [4, 2]]))
    assert ids.tolist() == [start, start + 5, start + 4, start + 5 + 2]
    assert vocabulary.size == start + 8
    assert vocabulary.codes(ids).tolist() == [[0, 0], [4, 2]]
    with pytest.raises(ValueError, match="out of order"):
        vocabulary.codes(ids[[1, 0]])
    with pytest.raises(ValueError, match="whole codes"):
        vocabulary.codes(ids[:3])
