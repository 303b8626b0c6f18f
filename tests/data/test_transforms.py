import numpy as np

from pollux.data.transforms import corrupt_inputs
from pollux.tokens.sequence import Batch, Inputs, Targets
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import SPECIAL_IDS, SPECIALS, Vocabulary

VOCABULARY = Vocabulary(train_bpe(["a word or two"], 300))


def batch_of(documents: list[list[tuple[str, int]]]) -> Batch:
    """One document of (role, number of words) turns after the other in two equal rows."""
    word = len(SPECIALS) + 1
    rows = []
    for document in documents:
        rows.append([i for role, n in document for i in [SPECIAL_IDS[f"<{role}>"], *[word] * n, SPECIAL_IDS["<end_of_turn>"]]])
    ids = np.array([rows[0] + rows[1], rows[2] + rows[3]], np.int32)
    segment = np.array([[1] * len(rows[0]) + [2] * len(rows[1]), [1] * len(rows[2]) + [2] * len(rows[3])], np.int32)
    empty = np.zeros((2, 1), np.int32)
    return Batch(Inputs(ids, ids * 0, segment, ids * 0, ids * 0, {}), Targets(empty, empty, empty, empty, ids * 0))


def test_corruption_changes_the_wanted_share_of_model_words_and_nothing_else():
    n = 400
    batch = batch_of([[("user", n), ("model", n)]] * 4)
    before = batch.inputs.ids
    in_model = np.zeros(before.shape, bool)
    for first in (0, 2 * n + 4):
        in_model[:, first + n + 3 : first + 2 * n + 3] = True
    changed = corrupt_inputs(batch, 0.3, VOCABULARY, np.random.default_rng(0)).inputs.ids != before
    assert not (changed & ~in_model).any() and 0.2 < changed[in_model].mean() < 0.4
