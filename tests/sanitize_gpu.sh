#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# compute-sanitizer over the tests that need a GPU: memcheck, racecheck, initcheck, synccheck.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
command -v compute-sanitizer >/dev/null || { echo "sanitize_gpu.sh: compute-sanitizer is not on the path" >&2; exit 2; }
export KOOPFAST_REQUIRE_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in memcheck racecheck initcheck synccheck; do
  echo "==== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=koopfast \
    "$python" -m pytest -q -p no:cacheprovider -x tests/test_gpu.py "$@"
done
