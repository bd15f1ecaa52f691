# SPDX-License-Identifier: BSD-3-Clause
"""Compiles and runs the host checks of the maths that CPU and CUDA share."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_shared_maths_on_the_host(tmp_path):
    program = tmp_path / "test_math"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-math-errno"]
    source = ROOT / "tests" / "cpp" / "test_math.cpp"
    subprocess.run(
        [*compiler, *options, f"-I{ROOT / 'cpp'}", str(source), "-o", str(program)], check=True
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
