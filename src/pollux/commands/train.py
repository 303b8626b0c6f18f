"""`pollux train`: a recipe, single fields of it overridden, and the run."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import pollux
from pollux.train.config import TrainConfig

RECIPES = (Path("recipes"), Path(pollux.__file__).parents[2] / "recipes")


@dataclass(frozen=True)
class Run:
    """Train a model from a recipe, a Python file whose function recipe() returns the whole config. Every field of it is a flag.

    Example: pollux train recipes/smoke.py --out runs/smoke --steps 60 --checkpoint-every 5

    Example: pollux train recipes/folder.py --folder my-folder --out runs/mine --steps 2000

    `pollux train RECIPE --help` shows the fields with the recipe's values. What recipe() itself takes, as --folder, is a flag too.
    """

    recipe: tyro.conf.Positional[str]
    """Path of a recipe, or its name in recipes/."""
    out: Path
    """Folder of the run; the model ends up in OUT/model."""
    resume: bool = False
    """Continue from the newest checkpoint in OUT."""


@dataclass(frozen=True)
class ConfiguredRun(Run):
    __doc__ = Run.__doc__

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = tyro.MISSING


def recipe_path(name: str) -> Path:
    """The file of a recipe given by path or by its name in recipes/. Raises ValueError that lists the names."""
    for path in (Path(name), *(folder / f"{name}.py" for folder in RECIPES)):
        if path.suffix == ".py" and path.is_file():
            return path
    names = sorted({path.stem for folder in RECIPES for path in folder.glob("*.py")})
    raise ValueError(f"there is no recipe {name!r}; give the path of a Python file or one of {', '.join(names)}")


def load_recipe(name: str) -> Callable[..., TrainConfig]:
    """The function `recipe` of a recipe file. Raises ValueError if the file has none."""
    path = recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "recipe", None)):
        raise ValueError(f"{path} is not a recipe: it has no function recipe() that returns a TrainConfig")
    return module.recipe


def parse(arguments: list[str], verb: str = "train", bare: type = Run, configured: type = ConfiguredRun) -> Any:
    """The run of a command line RECIPE --out DIR [--resume] [--field value ...]. Raises ValueError for a value that a field refuses.

    For another verb: its flags, `bare`, and `configured`, the same with the flags of a TrainConfig, which is what is returned.
    """
    options = (tyro.conf.FlagCreatePairsOff,)
    if not arguments or arguments[0].startswith("-"):
        run: Any = tyro.cli(bare, prog=f"pollux {verb}", args=arguments or ["--help"], config=options)
        raise ValueError(f"the recipe comes first: pollux {verb} {run.recipe} --out {run.out}")
    name, *rest = arguments
    help_asked = [argument for argument in rest if argument in ("-h", "--help")]
    rest = [argument for argument in rest if argument not in help_asked]
    program = f"pollux {verb} {name}"
    if help_asked and _needs(load_recipe(name)) - {argument.partition("=")[0] for argument in rest}:
        print("These flags belong to the recipe. With the required ones given, --help shows every field of its config.")
        tyro.cli(load_recipe(name), prog=program, args=["--help"])
    config, rest = tyro.cli(load_recipe(name), prog=program, args=rest, return_unknown_args=True, add_help=False)
    default = configured(recipe=name, out=tyro.MISSING, config=config)
    return tyro.cli(configured, default=default, prog=program, args=[*rest, *help_asked], config=options)


def _needs(recipe: Callable[..., TrainConfig]) -> set[str]:
    """The flags that a recipe cannot do without."""
    parameters = inspect.signature(recipe).parameters.values()
    return {f"--{parameter.name.replace('_', '-')}" for parameter in parameters if parameter.default is parameter.empty}


def main(arguments: list[str]) -> None:
    """Entry of `pollux train`."""
    run = parse(arguments)
    from pollux.train import loop

    loop.run(run.config, run.out, resume=run.resume)
    print(f"{run.out / 'model'}: try `pollux chat {run.out / 'model'}`")
