"""The compiled CPU kernels: built from the C++ beside this file when they are first needed, kept among the compiled programs.

Building at first use, instead of at installation, ties them to the headers of the jaxlib that runs them. Without a C++ compiler
`library()` is None and a warning says what that costs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax

from pollux.compilation import cache_folder

SOURCES = (Path(__file__).parent / "product.h", Path(__file__).parent / "product.cc")
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-shared", "-w")


def compiler() -> str | None:
    """The C++ compiler: $CXX, else c++, g++ or clang++."""
    return next((path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))), None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, with `pollux_products` registered as an FFI call of XLA on the CPU; None without a compiler that can build them."""
    made_of = [*SOURCES, Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"]
    settings = " ".join((*FLAGS, platform.machine())).encode()
    key = hashlib.sha256(settings + b"".join(path.read_bytes() for path in made_of)).hexdigest()[:16]
    built = cache_folder() / "native" / f"product-{key}.so"
    try:
        problem = "" if built.is_file() else _build(built)
        kernels = None if problem else ctypes.CDLL(str(built))
    except OSError as error:  # a cache folder that cannot be written to or run from
        problem, kernels = str(error), None
    if kernels is None:
        warnings.warn(f"{problem}: products with quantised weights run without the CPU kernels, some 15 times slower", stacklevel=2)
        return None
    jax.ffi.register_ffi_target("pollux_products", jax.ffi.pycapsule(kernels.pollux_products), platform="cpu")
    return kernels


def _build(built: Path) -> str:
    """Compile to `built`; returns what went wrong, or nothing."""
    path = compiler()
    if path is None:
        return "no C++ compiler was found"
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        part = Path(folder) / built.name
        command = [path, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCES[-1]), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (
                f"{path} could not build the CPU kernels ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no message'})"
            )
        part.replace(built)
    return ""
