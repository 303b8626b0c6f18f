"""The compiled CPU kernels: built from the C++ beside this file when they are first needed, kept among the compiled programs.

Building at first use, instead of at installation, ties them to the headers of the jaxlib and to the processor that runs them. Without
a C++ compiler there are none, and a warning says what that costs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax

from pollux.compilation import cache_folder

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-shared", "-w")
THIS_PROCESSOR = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def compiler() -> str | None:
    """The C++ compiler: $CXX, else c++, g++ or clang++."""
    return next((path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))), None)


@functools.cache
def products() -> ctypes.CDLL | None:
    """Products with quantised weights, with `pollux_products` registered as an FFI call of XLA on the CPU.

    One build serves every processor of a kind: it chooses among its instructions as it runs. None without a compiler.
    """
    return _library("product", ("pollux_products",), FLAGS, "products with quantised weights take some 15 times as long")


@functools.cache
def attention() -> ctypes.CDLL | None:
    """Attention, also to keys and values of 8 bits, its gradient and the writing of a KV cache, as FFI calls of XLA for the processor that
    is here; None without a compiler."""
    calls = ("pollux_attention", "pollux_attention_rounded", "pollux_attention_gradient", "pollux_write")
    return _library("attention", calls, (*FLAGS, THIS_PROCESSOR), "attention takes longer")


@functools.cache
def decoding() -> ctypes.CDLL | None:
    """A step of generation through all layers as one FFI call of XLA for the processor that is here; None without a compiler."""
    return _library("decode_layers", ("pollux_decode_layers",), (*FLAGS, THIS_PROCESSOR), "a step of generation takes about twice as long")


def _library(name: str, calls: tuple[str, ...], flags: tuple[str, ...], cost: str) -> ctypes.CDLL | None:
    """NAME.cc as a shared library with its FFI calls registered; `cost`: what it means to be without, for the warning."""
    headers = sorted((Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api").glob("*.h"))
    sources = [*sorted(FOLDER.glob("*.h")), FOLDER / f"{name}.cc", *headers]
    settings = " ".join((*flags, platform.machine(), _processor() if THIS_PROCESSOR in flags else "")).encode()
    key = hashlib.sha256(settings + b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = cache_folder() / "native" / f"{name}-{key}.so"
    try:
        problem = "" if built.is_file() else _build(FOLDER / f"{name}.cc", flags, built)
        library = None if problem else ctypes.CDLL(str(built))
    except OSError as error:  # a cache folder that cannot be written to or run from
        problem, library = str(error), None
    if library is None:
        warnings.warn(f"{problem}: {cost}", stacklevel=3)
        return None
    for call in calls:
        jax.ffi.register_ffi_target(call, jax.ffi.pycapsule(getattr(library, call)), platform="cpu")
    return library


def _processor() -> str:
    """What tells processors with different instructions apart, so that a cache folder may be shared between machines."""
    about = Path("/proc/cpuinfo")
    if about.is_file():
        return " ".join(sorted({line for line in about.read_text().splitlines() if line.startswith(("flags", "Features", "CPU part"))}))
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "machdep.cpu"], capture_output=True, text=True).stdout
    return platform.processor()


def _build(source: Path, flags: tuple[str, ...], built: Path) -> str:
    """Compile to `built`; returns what went wrong, or nothing."""
    path = compiler()
    if path is None:
        return "no C++ compiler was found"
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        part = Path(folder) / built.name
        command = [path, *flags, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (
                f"{path} could not build the CPU kernels ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no message'})"
            )
        part.replace(built)
    return ""
