#!/usr/bin/env bash
# Everything that needs a GPU, in one go, each step under a time limit: build, tests, compute-sanitizer, measurements.
# Nothing is downloaded: python3 must have torch, numpy, ml_dtypes, pytest, pybind11, cmake, ninja; nvcc must be there.
# GoogleTest's cases run where it is found: installed, or under CMAKE_PREFIX_PATH.
# bench/gpu/run.sh [folder]: results go there (default build/gpu/results): gpu.json, gpu.md, logs.tgz.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=build/gpu logs=build/gpu/logs
python=${PYTHON:-python3}
rm -rf "$logs"
mkdir -p "${1:-$build/results}" "$logs"
results=$(realpath "${1:-$build/results}")
export PYTHONUNBUFFERED=1
start=$SECONDS
total=${SPARSED_GPU_SECONDS:-570} # for everything
reserve=120                       # of these, for the measurements
failed=()
trap 'tar -C "$logs" -czf "$results/logs.tgz" .' EXIT

left() { echo $((total - (SECONDS - start))); }

# step NAME SECONDS COMMAND...: its output goes to a log, of which the end is shown.
step() {
  local name=$1 limit=$2 begun=$SECONDS most status
  shift 2
  most=$(($(left) - reserve))
  [ "$limit" -lt "$most" ] || limit=$most
  if [ "$limit" -lt 5 ]; then
    echo "== $name: no time left"
    return 124
  fi
  timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1
  status=$?
  echo "== $name: status $status, $((SECONDS - begun)) s"
  tail -n $((status == 0 ? 12 : 60)) "$logs/$name.log"
  return $status
}
# The same, and its failure is one of the whole.
must() { step "$@" || { failed+=("$1"); return 1; }; }
finish() {
  echo "== $((SECONDS - start)) s in all"
  [ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
  exit 0
}

nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || { echo "no GPU here" >&2; exit 1; }
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[ "$arch" = 90 ] && arch=90a

# For this GPU alone. GoogleTest where there is one; pytest runs the same cases through the package.
tests=OFF includes=()
IFS=':;' read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}"
for prefix in "${prefixes[@]}"; do includes+=(-I"$prefix/include"); done
echo '#include <gtest/gtest.h>' | "${CXX:-c++}" "${includes[@]}" -E -x c++ - >/dev/null 2>&1 && tests=ON
step configure 90 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSPARSED_CUDA=ON -DBUILD_TESTING=$tests \
  -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DPython_EXECUTABLE="$(command -v "$python")" || exit 1
targets=(_core)
[ $tests = ON ] && targets+=(test_gpu)
must build 300 cmake --build "$build" --target "${targets[@]}" || finish
measure=(env -C bench "$python" -m gpu.measure)

# The package from the build tree asks for the metadata of an installed one.
site=$build/site
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
mkdir -p "$site/sparsed-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: sparsed\nVersion: %s\n' "$version" >"$site/sparsed-$version.dist-info/METADATA"
export PYTHONPATH=$PWD/$build/python:$PWD/$site${PYTHONPATH:+:$PYTHONPATH}

# A process for each kernel: after an error or a hang the others still tell.
right=ON
for case in "float32 64" "bfloat16 32" "bfloat16 256" "bfloat16 64" "bfloat16 128" "float16 128"; do
  read -r dtype dim <<<"$case"
  must "check-$dtype-$dim" 40 "${measure[@]}" --check-only --dtype "$dtype" --head-dim "$dim" || right=OFF
done

timeout_option=()
"$python" -c 'import pytest_timeout' 2>/dev/null && timeout_option=(--timeout 60)
must pytest 120 "$python" -m pytest -v -W default -m gpu -p no:cacheprovider "${timeout_option[@]}" \
  tests/python/test_gpu.py || right=OFF
[ $tests = ON ] && { must ctest 90 ctest --test-dir "$build" -L gpu --output-on-failure || right=OFF; }

if ! command -v compute-sanitizer >/dev/null; then
  echo "== compute-sanitizer: not found"
elif [ $right = OFF ] || [ $((SECONDS - start)) -ge 300 ]; then
  echo "== compute-sanitizer: left out, after a failure or for want of time"
else
  small=("$python" bench/gpu/small.py)
  must memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 "${small[@]}"
  # They may report what warps that take different roles do rightly: for the reader, no failures.
  for tool in racecheck synccheck; do
    step $tool 60 compute-sanitizer --tool $tool --error-exitcode 1 "${small[@]}" || echo "== $tool: read its log"
  done
fi

reserve=0
seconds=$(left)
must measure "$seconds" "${measure[@]}" --json "$results/gpu.json" --flex --seconds $((seconds > 80 ? seconds - 60 : 20)) &&
  cp "$logs/measure.log" "$results/gpu.md"
finish
