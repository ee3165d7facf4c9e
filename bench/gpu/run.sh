#!/usr/bin/env bash
# Everything that needs a GPU, in one go, each step under a time limit: build, tests, compute-sanitizer, measurements.
# Nothing is downloaded: python3 must have torch, numpy, ml_dtypes, pytest, pybind11, cmake, ninja; nvcc must be there.
# bench/gpu/run.sh [folder]: results go there (default build/gpu/results): gpu.json, gpu.md, logs.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${1:-build/gpu/results}
build=build/gpu
python=${PYTHON:-python3}
mkdir -p "$results"
export PYTHONUNBUFFERED=1
start=$SECONDS
failed=()

# step NAME SECONDS COMMAND...: its output goes to a log, of which the end is shown.
step() {
  local name=$1 limit=$2 begun=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$results/$name.log" 2>&1
  local status=$?
  echo "== $name: status $status, $((SECONDS - begun)) s"
  tail -n 12 "$results/$name.log"
  [ $status = 0 ] || failed+=("$name")
  return $status
}

nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || { echo "no GPU here" >&2; exit 1; }
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[ "$arch" = 90 ] && arch=90a

# For this GPU alone. GoogleTest where there is one; pytest runs the same cases through the package.
tests=OFF
echo '#include <gtest/gtest.h>' | "${CXX:-c++}" -E -x c++ - >/dev/null 2>&1 && tests=ON
# Without Python's headers there is no module, and the C functions of hook.cpp alone are tested and measured.
configure() {
  step "$1" 90 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSPARSED_CUDA=ON -DBUILD_TESTING=$tests \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DPython_EXECUTABLE="$(command -v "$python")" -DSPARSED_PYTHON="$2"
}
module=ON
if ! configure configure ON; then
  module=OFF failed=()
  configure configure-without-python OFF || exit 1
fi
targets=(sparsed_gpu_hook)
[ $module = ON ] && targets+=(_core)
[ $tests = ON ] && targets+=(test_gpu)
step build 240 cmake --build "$build" --target "${targets[@]}" || exit 1
hook=$PWD/$build/libsparsed_gpu_hook.so
measure=(env -C bench "$python" -m gpu.measure --hook "$hook")

# The package from the build tree asks for the metadata of an installed one.
site=$build/site
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
mkdir -p "$site/sparsed-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: sparsed\nVersion: %s\n' "$version" >"$site/sparsed-$version.dist-info/METADATA"
export PYTHONPATH=$PWD/$build/python:$PWD/$site

[ $module = ON ] && step pytest 150 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/python/test_gpu.py \
  tests/python/test_attention.py tests/python/test_select.py
[ $tests = ON ] && step ctest 90 ctest --test-dir "$build" -L gpu --output-on-failure

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    if [ $module = ON ]; then
      step $tool 60 compute-sanitizer --tool $tool --error-exitcode 1 "$python" bench/gpu/small.py
    else
      step $tool 60 compute-sanitizer --tool $tool --error-exitcode 1 "${measure[@]}" --check-only
    fi
  done
else
  echo "== compute-sanitizer: not found"
fi

left=$((470 - (SECONDS - start)))
step measure $((left > 60 ? left : 60)) "${measure[@]}" --json "$(realpath "$results")/gpu.json" \
  --flex --seconds $((left > 80 ? left - 60 : 20)) && cp "$results/measure.log" "$results/gpu.md"

echo "== $((SECONDS - start)) s in all"
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
