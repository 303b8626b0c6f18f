"""The `pollux` command: every verb explains itself, a mistake is one line, and single fields of a recipe can be overridden."""

import subprocess
import sys

import pytest

from pollux.cli import VERBS, main

TRAINABLE = {"tokenizer": ["train"], "codec": ["train"]}


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of one command line."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_the_installed_command_lists_all_verbs():
    shown = subprocess.run([sys.executable, "-m", "pollux.cli"], capture_output=True, text=True, check=True).stdout
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_and_a_sentence_for_each_flag(verb, capsys):
    code, out, _ = run(capsys, verb, *TRAINABLE.get(verb, []), "--help")
    assert code == 0
    assert f"Example: pollux {verb}" in out
    for text in out.split("│ -")[1:]:
        assert "." in text, text


def test_an_unknown_verb_is_one_line_and_code_2(capsys):
    code, out, err = run(capsys, "trian")
    assert (code, out) == (2, "")
    assert err.startswith("pollux: there is no verb 'trian'") and err.count("\n") == 1


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    code, out, err = run(capsys, "model", "nano-9")
    assert (code, out) == (2, "")
    assert "nano-9" in err and "nano-1" in err and err.count("\n") == 1


def test_a_mistake_shows_its_traceback_on_request(capsys, monkeypatch):
    monkeypatch.setenv("POLLUX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nano-9"):
        main(["model", "nano-9"])


def test_model_prints_parts_that_sum_to_the_parameters(capsys):
    code, out, _ = run(capsys, "model", "tiny")
    assert code == 0
    numbers = {line[:18].strip(): int(line[18:36].replace(",", "")) for line in out.splitlines() if line.startswith("  ")}
    assert numbers.pop("parameters") == sum(numbers.values())
    assert "FLOPs per token" in out and "KV bytes per token" in out


def test_equal_seeds_give_equal_hashes_and_other_seeds_others(tmp_path, capsys):
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(capsys, "model", "tiny", "--random", tmp_path / name, "--seed", seed)[0] == 0
        hashes.append(run(capsys, "model", tmp_path / name, "--hash")[1].strip())
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_trained_tokenizer_reads_back_what_it_was_trained_on(tmp_path, capsys):
    from pollux.tokens.vocabulary import Vocabulary

    (tmp_path / "notes.md").write_text("the red star is left of the blue star\n" * 20)
    code, out, _ = run(capsys, "tokenizer", "train", tmp_path, "--out", tmp_path / "tokenizer", "--vocab-size", 300)
    assert code == 0, out
    vocabulary = Vocabulary.load(tmp_path / "tokenizer")
    assert vocabulary.size <= 300
    ids = vocabulary.encode_text("a red star ☆")
    assert vocabulary.decode(ids) == "a red star ☆"
    assert len(vocabulary.encode_text("the red star is left of")) < 12


def test_a_tokenizer_needs_files(tmp_path, capsys):
    code, _, err = run(capsys, "tokenizer", "train", tmp_path, "--out", tmp_path / "tokenizer")
    assert code == 2 and "no text files" in err
