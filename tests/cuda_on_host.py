# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels compiled for the host, as a module to test: tests/cpp/cuda_on_host."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC"]
# (Fibers jump between stacks, which a fortified longjmp takes for an error.)
OPTIONS += ["-U_FORTIFY_SOURCE"]
# Wide loads and stores of places that are not aligned are errors, as they are on a device.
OPTIONS += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]


@cache
def module(*definitions: str) -> ModuleType:
    """Compile, unless the same sources were compiled before, and import."""
    here = ROOT / "tests" / "cpp" / "cuda_on_host"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    folders = [here, ROOT / "cpp", ROOT / "cuda", pybind11.get_include()]
    folders.append(sysconfig.get_paths()["include"])
    options = [*OPTIONS, "-shared", *definitions, *(f"-I{folder}" for folder in folders)]
    digest = hashlib.sha256(" ".join([*compiler, *options]).encode())
    for folder in (here, ROOT / "cpp", ROOT / "cuda"):
        for source in sorted(folder.rglob("*.[ch]*")):
            digest.update(source.read_bytes())
    built = ROOT / "build" / "cuda_on_host" / digest.hexdigest()[:16] / "cuda_on_host.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        new = built.with_suffix(f".{os.getpid()}")
        source = str(here / "module.cpp")
        subprocess.run([*compiler, *options, source, "-o", str(new)], check=True)
        os.replace(new, built)
    spec = importlib.util.spec_from_file_location("cuda_on_host", built)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
