#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds koopfast for this machine's GPU, checks it and times it, in one call and without network:
#   bash bench/gpu_report.sh [folder for the results]
# Needed: Python with torch and numpy, nvcc, CMake, ninja, pybind11, scikit-build-core, and Eigen's
# headers in KOOPFAST_EIGEN_DIR (default build/eigen, which `make eigen` fills where there is one).
# Writes gpu_report.json, resources.txt and tests.txt, the timings also where a test failed (the exit
# code then says so). KOOPFAST_REPORT_DEVICE=cpu tries the script where there is no GPU, with small sizes;
# with KOOPFAST_CUDA=ON beside it the kernels are built, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(realpath -m "${1:-out/gpu}")
python=${PYTHON:-python3}
device=${KOOPFAST_REPORT_DEVICE:-cuda}
eigen=$(realpath -m "${KOOPFAST_EIGEN_DIR:-build/eigen}")
site=$PWD/build/gpu/site
stop() { echo "gpu_report.sh: $1" >&2; exit 2; }

for module in torch numpy pybind11 scikit_build_core; do
  "$python" -c "import $module" 2>/dev/null || stop "$python has no $module"
done
for tool in cmake ninja $([[ $device == cpu && ${KOOPFAST_CUDA:-OFF} == OFF ]] || echo nvcc); do
  command -v "$tool" >/dev/null || stop "$tool is not on the path"
done
[[ -e $eigen/Eigen/Core ]] || stop "no Eigen/Core in $eigen: run 'make eigen' first"
if [[ $device != cpu ]]; then
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    stop "torch $("$python" -c 'import torch; print(torch.__version__)') sees no GPU; KOOPFAST_REPORT_DEVICE=cpu tries the script without one"
fi
mkdir -p "$out"
failed=0

cuda=ON small=()
if [[ $device == cpu ]]; then
  cuda=${KOOPFAST_CUDA:-OFF} small=(--small --repeats 3)
else
  export KOOPFAST_REQUIRE_CUDA=1
  arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  export CUDAARCHS=${CUDAARCHS:-$arch-real}
fi

echo "==== build (CUDA $cuda ${CUDAARCHS:-})"
start=$SECONDS
rm -rf "$site"
"$python" -m pip --disable-pip-version-check install --quiet --no-build-isolation --no-deps --no-index \
  --target "$site" -C build-dir=build/gpu/cmake -C cmake.define.KOOPFAST_CUDA=$cuda \
  -C cmake.define.KOOPFAST_EIGEN_DIR="$eigen" -C cmake.define.KOOPFAST_WERROR=ON .
echo "built in $((SECONDS - start)) s"
export PYTHONPATH=$site:$PWD/bench PYTHONDONTWRITEBYTECODE=1
"$python" -c "import koopfast; print(koopfast.build_info())"

# First what is asked for; the rest takes longer.
echo "==== report"
"$python" bench/gpu_report.py --device "$device" "${small[@]}" --out "$out/gpu_report.json" || failed=1

if [[ $device == cuda ]]; then
  echo "==== tests on the device"
  if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
    files=(tests/test_gpu.py tests/test_cuda_kernels.py $(grep -lwE '(on_)?device' tests/test_*.py | grep -v -e integration -e test_cli))
    "$python" -m pytest -q -p no:cacheprovider -k "cuda or gpu" "${files[@]}" 2>&1 |
      tee "$out/tests.txt" | tail -25 || failed=1
  else
    echo "no pytest here: only the checks of the report" | tee "$out/tests.txt"
  fi
  echo "==== registers and spills"
  "$python" bench/cuda_resources.py "${CUDAARCHS%-real}" | tee "$out/resources.txt" || failed=1
  if command -v compute-sanitizer >/dev/null; then
    echo "==== compute-sanitizer"
    PYTHON=$python bash tests/sanitize_gpu.sh 2>&1 | tee "$out/sanitizer.txt" | tail -12 || failed=1
  fi
fi
exit $failed
