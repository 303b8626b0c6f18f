"""The import order of docs/architecture.md, and the size of files."""

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "pollux"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400


def import_order() -> dict[str, int]:
    """Rank of each part of the package, read from the order that the architecture page states."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    stated = re.search(r"`([a-z, ]*media, content <.*?)`", page, re.DOTALL)
    assert stated, "docs/architecture.md no longer states the import order"
    names = [re.findall(r"[a-z]+", part) for part in stated[1].replace("recipes of the package", "recipes").split("<")]
    ranks = {name: rank for rank, group in enumerate(names) for name in group}
    return ranks | {"commands": ranks["cli"]}


def part(module: str) -> str:
    """The part of the package that a dotted module name belongs to: pollux.model.config -> model."""
    return module.split(".")[1]


def imported_modules(path: Path) -> set[str]:
    """Every pollux module that a file imports, at its top or inside a function."""
    package = ["pollux", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names} if source == "pollux" else {source}
    return {name for name in found if name.startswith("pollux.")}


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_itself_and_from_its_left(path):
    ranks = import_order()
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ranks, f"{own} is missing from the import order in docs/architecture.md"
    against = {name for name in imported_modules(path) if ranks[part(name)] > ranks[own]}
    assert not against


def test_nothing_imports_the_command_line():
    importers = {p for p in MODULES for name in imported_modules(p) if part(name) == "cli"}
    assert not importers


def test_an_import_against_the_arrows_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "tokens").mkdir()
    file = tmp_path / "tokens" / "text.py"
    file.write_text("import pollux.cli\nfrom ..train import loop\n\ndef f():\n    from pollux import generate\n    from .pack import x\n")
    assert imported_modules(file) == {"pollux.cli", "pollux.train", "pollux.generate", "pollux.tokens.pack"}


@pytest.mark.parametrize("folder", ["src", "recipes", "benchmarks"])
def test_no_python_file_is_longer_than_one_sitting(folder):
    long = {str(p.relative_to(ROOT)): n for p in (ROOT / folder).rglob("*.py") if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_pollux_loads_no_framework():
    assert not loaded_after("import pollux") & {"jax", "torch", "transformers", "tensorflow"}


def test_the_command_line_shows_its_help_without_loading_jax():
    assert not loaded_after("from pollux.cli import main; main(['--help'])") & {"jax", "torch", "numpy", "tyro"}


def outside_imports() -> set[str]:
    """First names of everything that the package imports from elsewhere."""
    names = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - {"pollux", *sys.stdlib_module_names}


def test_the_package_never_imports_the_frameworks_that_only_tests_compare_with():
    assert not outside_imports() & {"torch", "transformers", "tensorflow"}


def test_what_the_package_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (lines for name, lines in project["optional-dependencies"].items() if name != "dev")
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in itertools.chain(project["dependencies"], *extras)}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {n for n in outside_imports() if not declared & {d.lower().replace("_", "-") for d in distributions.get(n, [n])}}
    assert not undeclared


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.name)
def test_every_recipe_can_be_loaded(path):
    from pollux.commands.train import load_recipe

    assert callable(load_recipe(str(path)))
