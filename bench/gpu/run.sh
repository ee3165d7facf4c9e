#!/usr/bin/env bash
# Runs everything that needs a GPU: bench/gpu/run.sh PART... Without a name, all parts run in this order:
#   build      the extension and the GPU's C++ tests, for this GPU's architecture
#   tests      every kernel against float64, then the GPU's pytest and CTest cases
#   sanitizer  compute-sanitizer on small calls
#   attention  dense, sparse and selecting attention beside torch's
#   stack      denoising steps of two layers of LLaDA-8B with the torch engine
# Each command has a time limit. JSON files and the log of each command are written to $RESULTS (default
# build/gpu/results) as soon as they exist. Nothing is downloaded: python3 must have torch, numpy, ml_dtypes, pytest,
# pybind11, cmake and ninja, and nvcc must be installed. GoogleTest's cases run if GoogleTest is installed or lies
# under CMAKE_PREFIX_PATH.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=build/gpu
python=${PYTHON:-python3}
results=${RESULTS:-$build/results}
mkdir -p "$results/logs"
results=$(realpath "$results")
failed=()

# step NAME SECONDS COMMAND... writes the output of a command to a log and shows the end of the log.
step() {
  local name=$1 limit=$2 begun=$SECONDS status
  shift 2
  timeout -k 5 "$limit" "$@" >"$results/logs/$name.log" 2>&1
  status=$?
  echo "== $name: status $status, $((SECONDS - begun)) s"
  tail -n $((status == 0 ? 12 : 60)) "$results/logs/$name.log"
  [ $status = 0 ] || failed+=("$name")
  return $status
}

part_build() {
  local arch tests=OFF includes=() prefixes
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$arch" = 90 ] && arch=90a
  IFS=':;' read -ra prefixes <<<"${CMAKE_PREFIX_PATH:-}"
  for prefix in "${prefixes[@]}"; do includes+=(-I"$prefix/include"); done
  echo '#include <gtest/gtest.h>' | "${CXX:-c++}" "${includes[@]}" -E -x c++ - >/dev/null 2>&1 && tests=ON
  local targets=(_core)
  [ $tests = ON ] && targets+=(test_gpu)
  step configure 60 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSPARSED_CUDA=ON -DBUILD_TESTING=$tests \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DPython_EXECUTABLE="$(command -v "$python")" &&
    step build 240 cmake --build "$build" --target "${targets[@]}" || exit 1
  # The package in the build tree needs the metadata of an installed package.
  local version
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
  mkdir -p "$build/site/sparsed-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: sparsed\nVersion: %s\n' "$version" >"$build/site/sparsed-$version.dist-info/METADATA"
}

part_tests() {
  # Each kernel gets a process, so that an error or a hang in one does not hide the results of the others.
  local case dtype dim
  for case in "bfloat16 128" "bfloat16 64" "float16 128" "bfloat16 32" "bfloat16 256" "float32 64"; do
    read -r dtype dim <<<"$case"
    step "check-$dtype-$dim" 40 "$python" -m bench.gpu.measure --check-only --dtype "$dtype" --head-dim "$dim"
  done
  step pytest 120 "$python" -m pytest -v -W default -m gpu -p no:cacheprovider \
    tests/python/kernels/test_{gpu,attention,select,invariants,pattern_cache}.py
  [ ! -x "$build/test_gpu" ] || step ctest 60 ctest --test-dir "$build" -L gpu --output-on-failure
}

part_sanitizer() {
  step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$python" -m bench.gpu.small
}

part_attention() {
  step attention 200 "$python" -m bench.gpu.measure --json "$results/attention.json" --flex --seconds 140
}

part_stack() {
  step stack 120 "$python" -m bench.gpu.stack --json "$results/stack.json"
}

[ $# -gt 0 ] || set -- build tests sanitizer attention stack
for part in "$@"; do declare -F "part_$part" >/dev/null || { sed -n 2,11p "$0" >&2; exit 2; }; done
nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || { echo "there is no GPU here" >&2; exit 1; }
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD/$build/python:$PWD/$build/site:$PWD${PYTHONPATH:+:$PYTHONPATH}
for part in "$@"; do "part_$part"; done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
