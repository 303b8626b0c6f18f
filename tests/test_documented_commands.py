"""What the README, the docs, the recipes and the benchmarks tell a reader to type: every verb, file, flag and target of make is there."""

import functools
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

from pollux.cli import VERBS
from pollux.commands import train

ROOT = Path(__file__).parent.parent
PAGES = [path for path in sorted(ROOT.glob("docs/*.md")) if path.stem not in ("lab-notes", "conformance")]  # what was, and what is measured
SOURCES = [*sorted(ROOT.glob("recipes/*.py")), *sorted(ROOT.glob("benchmarks/*.py"))]
_TYPED = re.compile(r"`([^`\n]+)`|^    (\S.*)$", re.M)
_OURS = re.compile(r"(?:\.venv/bin/)?(?:(?:python )?(?=benchmarks/\w+\.py)|(?=pollux |make |pip install '?pollux))(.*)")


def documented() -> list[str]:
    texts = [path.read_text() for path in (ROOT / "README.md", *PAGES)]
    texts += [re.search(r'"""(.*?)"""', path.read_text(), re.S)[1] for path in SOURCES]
    spans = ("".join(span).strip() for text in texts for span in _TYPED.findall(text))
    # What may be left out stands in brackets, a remark behind two spaces.
    return sorted({re.sub(r"\[(-.*)\]|  .*", r"\1", match[1]) for span in spans if (match := _OURS.fullmatch(span))})


class Parsed(Exception):
    """The words of a command have become what it is to do, and it is not done."""


@functools.cache
def smallest():
    return train.load_recipe("smoke")()


@pytest.fixture
def parsed(monkeypatch):
    """tyro reads the words of a command line and runs nothing; a recipe has the config of the smallest."""
    cli, verbs = tyro.cli, tyro.extras.subcommand_cli_from_dict

    def idle(target):
        return target if isinstance(target, type) else functools.wraps(target)(lambda *_, **__: smallest())

    def parse(target, **options):
        found = cli(idle(target), **options)
        if options.get("return_unknown_args"):
            return found
        raise Parsed

    def parse_verb(targets, **options):
        verbs({name: idle(target) for name, target in targets.items()}, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_verb)


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_can_be_typed(command, parsed, monkeypatch, capsys):
    program, *words = (re.sub("^N$", "1", word) for word in shlex.split(command))
    if program == "pip":
        [extra] = re.fullmatch(r"pollux\[(\w+)\]", words[-1]).groups()
        assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    elif program == "make":
        made = (ROOT / "Makefile").read_text()
        assert re.search(rf"(?m)^{words[0]}:", made)
        assert all(f"$({word.partition('=')[0]})" in made for word in words[1:])
    elif program == "pollux":
        assert words[0] in VERBS
        if words[1:]:
            with pytest.raises((Parsed, SystemExit)) as end:
                importlib.import_module(f"pollux.commands.{words[0]}").main(words[1:])
            assert end.type is Parsed or end.value.code == 0, capsys.readouterr().err
    else:
        assert (ROOT / program).is_file()
        if words and "argparse" not in (ROOT / program).read_text():
            monkeypatch.setattr(sys, "argv", [program, *words])
            monkeypatch.syspath_prepend(ROOT / "benchmarks")
            if "import torch" in (ROOT / program).read_text():
                pytest.importorskip("torch")
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / program), run_name="__main__")


def test_commands_are_found_in_all_kinds_of_places():
    found = documented()
    assert {command.split()[0] for command in found} >= {"pollux", "make", "pip", "benchmarks/serving.py"}
    assert len([command for command in found if command.startswith("pollux ")]) > 30
