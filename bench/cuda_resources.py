# SPDX-License-Identifier: BSD-3-Clause
"""Registers, stack and spills of every CUDA kernel, from `nvcc -Xptxas -v`; fails where one spills.

python bench/cuda_resources.py [architecture ...]       # default: 75 80 90 100 120
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", f"-I{ROOT / 'cpp'}"]
# Bytes a thread that do not matter: what a chunk, not a window, keeps in a stack frame.
ALLOWED = 64


def kernels(source: Path, architecture: str) -> list[tuple[str, int, int]]:
    """(name, registers, bytes spilled) of each kernel of a file."""
    command = ["nvcc", f"-arch=sm_{architecture}", *OPTIONS, "-c", str(source), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found, name, spilled = [], "", 0
    for line in done.stderr.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = plain(entry[1])
        if spill := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = max(int(spill[1]), int(spill[2]))
        if used := re.search(r"Used (\d+) registers", line):
            found.append((name, int(used[1]), spilled))
    return found


def plain(mangled: str) -> str:
    """The kernel's name and its template arguments, as far as they tell instances apart."""
    name = re.search(r"\d(\w*?_kernel)", mangled)
    types = re.findall(r"kernelI(NS_\d+\w+?E|[fd])(?:L\w+?E(\d)E|Li(\d)E)?", mangled)
    short = re.sub(r"^.*?([a-z_]+_kernel)$", r"\1", name[1]) if name else mangled
    return short + "".join(f"<{t.strip('NS_0123456789E') or t}{a or b}>" for t, a, b in types)


def main() -> int:
    bad = 0
    for architecture in sys.argv[1:] or ["75", "80", "90", "100", "120"]:
        start = time.perf_counter()
        for source in sorted((ROOT / "cuda").glob("*.cu")):
            for name, registers, spilled in kernels(source, architecture):
                mark = "  SPILLS" if spilled > ALLOWED else ""
                bad += bool(mark)
                print(f"sm_{architecture:4}{name:45}{registers:4} registers{spilled:6} B{mark}")
        print(f"sm_{architecture}: {time.perf_counter() - start:.0f} s to compile", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
