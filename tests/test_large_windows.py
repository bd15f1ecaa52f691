# SPDX-License-Identifier: BSD-3-Clause
"""Windows as large as the disk: snapshots and prediction in files, and no copy of either in memory.

Linux counts a process's private memory, and with a limit on it an allocation too many is an error;
mapped files do not count. The limit here leaves less than one row of room.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

M, N = 6, 7_000_000
ROW = 4 * N
ROOM = 24_000_000  # bytes, less than a row: workspace of a fixed size

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from koopfast import KoopmanOperator, Partition

folder, m, n, room, kind = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5]
torch.set_num_threads(1)
half = n // 2
partition = None if kind == "one block" else Partition.from_segments(
    [[(0, half // 2), (half, n - half)], [(half // 2, half - half // 2)]], n
)

def predict(snapshots, partition, out):
    operator = KoopmanOperator.fit(snapshots, partition, rank=2, method="gram")
    return operator.predict([1, float("inf")], out=out)

if kind == "torch":
    path = str(folder / "snapshots")
    snapshots = torch.from_file(path, shared=True, size=m * n, dtype=torch.float32).view(m, n)
else:
    snapshots = np.memmap(folder / "snapshots", np.float32, "r", shape=(m, n))
out = torch.from_file(str(folder / "out"), shared=True, size=2 * n, dtype=torch.float32)
predict(torch.rand(m, 5000), None, None)  # what is loaded and allocated once

status = Path("/proc/self/status").read_text().split()
used = 1024 * int(status[status.index("VmData:") + 1])
resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
try:
    torch.zeros(n, dtype=torch.float32)
except RuntimeError:
    pass
else:
    raise SystemExit("the limit does not hold")
predict(snapshots, partition, out.view(2, n))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["one block", "two blocks", "torch"])
def test_mapped_snapshots_are_fitted_and_predicted_without_a_row_of_memory(kind, tmp_path):
    snapshots = np.memmap(tmp_path / "snapshots", np.float32, "w+", shape=(M, N))
    weights = np.linspace(-1, 1, N, dtype=np.float32)
    for t in range(M):
        np.multiply(weights, 1 + 0.5**t, out=snapshots[t])
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(2, N))
    snapshots.flush()
    arguments = [str(tmp_path), str(M), str(N), str(ROOM), kind]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(out[0], weights * (1 + 0.5**M), rtol=1e-6)
    np.testing.assert_allclose(out[1], weights, rtol=1e-6)
