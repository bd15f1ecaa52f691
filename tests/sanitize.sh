#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds the extension for a sanitizer and runs the native tests on it: sanitize.sh address|thread
#
#   address   AddressSanitizer and UndefinedBehaviorSanitizer. Leaks are not looked for: what Python
#             and torch keep until they exit would drown ours.
#   thread    ThreadSanitizer. Its build replaces OpenMP's loop by plain threads (cpp/parallel.h says
#             why); of torch, which is not instrumented, nothing is reported.
#
# Both builds keep Eigen's assertions, and have one instruction set: the dispatchers of the hot loops
# run before a sanitizer is ready (KF_MULTIARCH).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:?address or thread}
bin=${BIN:-.venv/bin}
python=$(command -v "$bin/python")
compiler=${CXX:-c++}
out=build/sanitize/$kind
site=$PWD/$out/site
export PATH="$(dirname "$python"):$PATH"

case $kind in
  address) runtimes=(libasan.so libubsan.so libstdc++.so) ;;
  thread) runtimes=(libtsan.so libstdc++.so); export KOOPFAST_TEST_THREADS=3 ;;
  *) echo "sanitize.sh: expected address or thread, got '$kind'" >&2; exit 2 ;;
esac

packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cmake -S . -B "$out" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DKOOPFAST_SANITIZE="$kind" -DKOOPFAST_CUDA=OFF \
  -DPython_EXECUTABLE="$python" -DCMAKE_PREFIX_PATH="${CMAKE_PREFIX_PATH:-$packages}" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$out"
rm -rf "$site" && mkdir -p "$site"
cp -r python/koopfast "$site" && rm -f "$site"/koopfast/*.so
cmake --install "$out" --prefix "$site" >/dev/null

preload=()
for runtime in "${runtimes[@]}"; do
  file=$("$compiler" -print-file-name="$runtime")
  [[ $file == /* ]] || { echo "sanitize.sh: $compiler has no $runtime" >&2; exit 1; }
  preload+=("$(readlink -f "$file")")
done

export PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1 second_deadlock_stack=1"
"$python" -c "
import importlib.util, sys
found = importlib.util.find_spec('koopfast').origin
sys.exit(0 if found.startswith('$site') else f'koopfast is found in {found}, not in $site')"

# TSan's shadow memory wants its place: no random addresses.
LD_PRELOAD=$(IFS=:; echo "${preload[*]}") setarch "$(uname -m)" -R "$python" -m pytest -p no:cacheprovider \
  tests/test_snapshot_svd.py tests/test_operator_fit.py tests/test_operator_power.py tests/test_operator_lanes.py \
  tests/test_operator_spectrum.py tests/test_choice.py tests/test_moments.py "${@:2}"
# A program of its own needs no preloading, only the flags.
if [[ $kind == address ]]; then
  CXX="$compiler -fsanitize=address,undefined -fno-sanitize-recover=all" \
    "$python" -m pytest -p no:cacheprovider tests/test_cpp_math.py
fi
