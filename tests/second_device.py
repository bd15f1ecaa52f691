# SPDX-License-Identifier: BSD-3-Clause
"""A second device of host memory: tests/cpp/second_device, compiled against the torch at hand.

With KOOPFAST_TEST_DEVICES=elsewhere the tests that take the ``device`` fixture also run there. What
is made on the wrong side of the bus, or meets there, fails as it would on a GPU; kernels, streams
and speed are no part of it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "cpp" / "second_device" / "second_device.cpp"
OPTIONS = ["-std=c++20", "-O1", "-fPIC", "-shared"]
NAME = "elsewhere"


@cache
def device() -> torch.device:
    """Compile, unless the same source was compiled for this torch before, and load."""
    from torch.utils import backend_registration

    home = Path(torch.__file__).parent
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    folders = (home / "include", home / "include" / "torch" / "csrc" / "api" / "include")
    options = [*OPTIONS, *(f"-I{folder}" for folder in folders)]
    state = " ".join([*compiler, *options, torch.__version__]).encode() + SOURCE.read_bytes()
    folder = ROOT / "build" / "second_device" / hashlib.sha256(state).hexdigest()[:16]
    built = folder / "second_device.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = built.with_suffix(f".{os.getpid()}")
        libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
        command = [*compiler, *options, str(SOURCE), "-o", str(new), *libraries]
        subprocess.run(command, check=True)
        os.replace(new, built)

    class Module(backend_registration._DummyBackendModule):
        """What torch.elsewhere is."""

        def device(self, _: object) -> nullcontext[None]:
            return nullcontext()

    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    torch.ops.load_library(str(built))
    return torch.device(NAME, 0)
