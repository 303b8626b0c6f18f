"""Choosing codes and scales: gptq against the algorithm as the paper writes it, and the command on whole folders."""

import dataclasses

import jax
import numpy as np
import pytest

import pollux
from pollux.cli import main
from pollux.commands.quantize import calibration
from pollux.generate.model import Model
from pollux.model import family, params
from pollux.model.quantized import Quantized
from pollux.model.rounding import decode, encode, matrices, nearest
from pollux.shrink.quantize import DAMPING, gptq, inverse_factor, observe, quantize
from pollux.tokens.sequence import Modality, Sequence
from pollux.tokens.text import train_bpe
from pollux.tokens.vocabulary import Vocabulary


def optimal_brain_quantiser(weight, moments, scales, bits):
    """Rounding input after input: the rest moves by the inverse of the moments that are left (Frantar & Alistarh 2022, equations 1-3)."""
    H = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))
    inverse, left = np.linalg.inv(H), weight.astype(np.float64).copy()
    out = np.zeros_like(left)
    for k in range(len(left)):
        scale = scales[k // 32].astype(np.float64)
        out[k] = np.clip(np.rint(left[k] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        left -= np.outer(inverse[:, k] / inverse[k, k], left[k] - out[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return out


@pytest.fixture(scope="module")
def correlated():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 80)) + 0.3 * rng.standard_normal((400, 80))
    return x, rng.standard_normal((80, 24)).astype(np.float32)


def test_gptq_follows_the_paper(correlated):
    x, weight = correlated
    codes, scales = gptq(weight, inverse_factor(x.T @ x), 4)
    expected = optimal_brain_quantiser(weight, x.T @ x, scales, 4)
    same = np.isclose(decode(codes, np.repeat(scales, 32, 0)[:80], 4), expected, atol=1e-5)
    assert same.mean() > 0.999  # a tie may round either way


def test_gptq_keeps_outputs_better_than_the_nearest_codes(correlated):
    x, weight = correlated

    def error(codes, scales):
        return np.sum((x @ (decode(codes, np.repeat(scales, 32, 0)[:80], 4) - weight)) ** 2)

    assert error(*gptq(weight, inverse_factor(x.T @ x), 4)) < 0.5 * error(*nearest(weight, 4))


def test_gptq_of_uncorrelated_inputs_is_the_nearest(correlated):
    weight = correlated[1]
    for ours, theirs in zip(gptq(weight, inverse_factor(np.eye(80)), 4), nearest(weight, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_nearest_codes_are_nearest_and_no_scale_tried_is_better(correlated, bits):
    weight = correlated[1][:32, :1]
    codes, scales = nearest(weight, bits)
    error = np.sum((decode(codes, scales, bits) - weight) ** 2)
    reach = np.abs(weight).max() / 2 ** (bits - 1)
    for scale in np.linspace(-1.1 * reach, 1.1 * reach, 12, dtype=np.float16)[:, None, None]:
        choices = decode(np.arange(1, 2**bits), scale[0], bits)
        best = np.abs(weight - choices).min(1)
        assert error <= 1.05 * np.sum(best**2)
    assert encode(weight, scales, bits).tolist() == codes.tolist()


def text(ids) -> Sequence:
    ids = np.asarray(ids, np.int32)
    zero = np.zeros_like(ids)
    return Sequence(
        ids,
        zero.astype(np.float32),
        np.arange(len(ids), dtype=np.int32),
        zero,
        zero,
        np.full(len(ids), Modality.TEXT, np.int8),
        zero.astype(np.int8),
    )


def test_what_a_matrix_reads_is_observed_layer_by_layer():
    config = dataclasses.replace(family.tiny(64), soft_inputs=())
    weights = params.init(config, jax.random.key(1))
    model = Model(weights, config)
    moments = observe(weights, model, ["groups.0.attention.q", "groups.1.feed_forward.up"], [text(range(1, 9)), text([5, 6, 7])])
    assert {name: sorted(one.sums) for name, one in moments.items()} == {
        "groups.0.attention.q": [0, 1],
        "groups.1.feed_forward.up": [0, 1],
    }
    embedded = np.asarray(weights["embed"], np.float64)[[*range(1, 9), 5, 6, 7]] * 128**0.5
    read = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(moments["groups.0.attention.q"].sums[0], read.T @ read, rtol=1e-3, atol=1e-3)
    assert not np.allclose(moments["groups.0.attention.q"].sums[0], moments["groups.0.attention.q"].sums[1])


def test_an_unembedding_reads_the_hidden_states_that_predict():
    config = dataclasses.replace(family.tiny(256), soft_inputs=())
    model = Model(params.init(config, jax.random.key(1)), config)
    ids = list(range(1, 9))
    predicting = dataclasses.replace(text(ids), target=np.float32([0, 0, 0, 1, 1, 0, 0, 1]))  # of the fourth, fifth and last token
    moments = observe(model.params, model, ["embed"], [predicting])["embed"].sums[-1]
    table = np.asarray(model.params["embed"], np.float64)
    read = np.linalg.lstsq(table, np.asarray(model.logits(ids), np.float64)[[2, 3, 6]].T, rcond=None)[0].T
    np.testing.assert_allclose(moments, read.T @ read, rtol=1e-3, atol=1e-3)


def test_what_is_never_read_is_of_no_account():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((200, 60)), np.zeros((200, 4))], 1)
    weight = rng.standard_normal((64, 8)).astype(np.float32)
    loud = weight + 1000 * (np.arange(64) >= 60)[:, None].astype(np.float32)
    for ours, theirs in zip(gptq(loud, inverse_factor(x.T @ x), 4), gptq(weight, inverse_factor(x.T @ x), 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_routers_tables_and_norms_are_left_alone():
    names = set(matrices(family.model("pro", 1024)))
    assert "groups.0.experts.down" in names and "embed" in names
    assert not {name for name in names if "router" in name or "norm" in name or name.endswith((".row", ".column"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    assert main(["model", "tiny", "--random", str(path)]) == 0
    return path


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_a_large_matrix_is_rounded_part_by_part(source, monkeypatch, method):
    model, seen = pollux.load(source), [dataclasses.replace(text(range(3, 40)), target=np.float32([0] + [1] * 36))]
    whole = quantize(model, 4, method, seen, print).params["embed"].packed
    monkeypatch.setattr("pollux.shrink.quantize.PART", 128 * 48)
    np.testing.assert_array_equal(quantize(model, 4, method, seen, print).params["embed"].packed, whole)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_command_writes_a_smaller_folder_that_answers_alike(source, tmp_path, bits, capsys):
    assert main(["quantize", str(source), "--bits", str(bits), "--method", "nearest", "--out", str(tmp_path / "small")]) == 0
    size = [(path / "model.safetensors").stat().st_size for path in (source, tmp_path / "small")]
    assert size[0] / size[1] > {4: 6.5, 8: 3.6}[bits]
    full, small = pollux.load(source), pollux.load(tmp_path / "small")
    assert isinstance(small.params["embed"], Quantized)
    ids = list(range(3, 40))
    exact, close = full.logits(ids), small.logits(ids)
    assert np.linalg.norm(close - exact) < {4: 0.35, 8: 0.03}[bits] * np.linalg.norm(exact)


def test_a_quantised_folder_is_not_quantised_again_or_exported(source, tmp_path, capsys):
    assert main(["quantize", str(source), "--method", "nearest", "--out", str(tmp_path / "small")]) == 0
    assert main(["quantize", str(tmp_path / "small"), "--method", "nearest", "--out", str(tmp_path / "twice")]) == 2
    assert "quantised already" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "small"), "--to", "hf", "--out", str(tmp_path / "hf")]) == 2
    assert "export a folder that is not quantised" in capsys.readouterr().err
    assert main(["quantize", str(source), "--bits", "5", "--out", str(tmp_path / "five")]) == 2
    assert "bits 5 must be 4 or 8" in capsys.readouterr().err


def test_documents_that_a_model_cannot_read_are_left_out_of_calibration(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "good.txt").write_text("once upon a time there were words to read")
    (folder / "bad.png").write_bytes(b"not a picture")
    (folder / "bad.txt").write_text("a caption")
    tokenizer = train_bpe(["once upon a time there were words to read"] * 4, 300)
    vocabulary = Vocabulary(tokenizer)
    config = family.tiny(vocabulary.size)
    model = Model(params.init(config, jax.random.key(0)), config, vocabulary=vocabulary)
    assert [vocabulary.decode(one.ids[1:-1].tolist()) for one in calibration(model, folder, 8)] == [(folder / "good.txt").read_text()]
    (folder / "good.txt").unlink()
    with pytest.raises(ValueError, match="no calibration document can be read .*bad.png.* use --method nearest"):
        list(calibration(model, folder, 8))
