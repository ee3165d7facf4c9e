// The kernel tables that this machine can run, for parametrised tests.
#pragma once

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace sparsed::cpu {

const IsaKernels& kernels_amx_emulated();        // amx_emulated.cpp
const LinearKernels& int8_avx_vnni_in_avx512();  // avx_vnni_in_avx512.cpp
const LinearKernels& int8_amx_emulated();        // amx_int8_emulated.cpp

struct Target {
  std::string name;
  const IsaKernels* kernels;
  bool bf16_only;
};

inline std::vector<Target> targets() {
  std::vector<Target> all{{"scalar", &kernels_scalar(), false}};
#ifndef SPARSED_SCALAR_ONLY
  if (missing_features(Isa::kAvx2).empty()) all.push_back({"avx2", &kernels_avx2(), false});
  if (missing_features(Isa::kAvx512).empty()) all.push_back({"avx512", &kernels_avx512(), false});
  if (missing_features(Isa::kAmx).empty()) all.push_back({"amx", &kernels_amx(), true});
  const bool bf16_pairs = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (bf16_pairs) all.push_back({"avx512_bf16", &kernels_avx512_bf16(), true});
  // The emulation replaces the tile instructions alone: the softmax around them is AVX-512 with BF16 and VBMI.
  if (bf16_pairs) all.push_back({"amx_emulated", &kernels_amx_emulated(), true});
#endif
  return all;
}

inline std::string target_name(const Target& target) { return target.name; }

// Linear layers with int8 weights.
struct Int8Target {
  std::string name;
  const LinearKernels* kernels;
};

inline std::vector<Int8Target> int8_targets() {
  std::vector<Int8Target> all{{"scalar", &int8_scalar()}};
#ifndef SPARSED_SCALAR_ONLY
  if (missing_features(Isa::kAvx2).empty()) all.push_back({"avx2", &int8_avx2()});
  if (missing_features(Isa::kAvxVnni).empty()) all.push_back({"avx_vnni", &int8_avx_vnni()});
  if (missing_features(Isa::kAvx512).empty()) all.push_back({"avx512", &int8_avx512()});
  if (missing_features(Isa::kAvx512).empty()) all.push_back({"amx_emulated", &int8_amx_emulated()});
  if (missing_features(Isa::kAvx512Vnni).empty()) all.push_back({"avx512_vnni", &int8_avx512_vnni()});
  if (missing_features(Isa::kAvx512Vnni).empty()) all.push_back({"avx_vnni_in_avx512", &int8_avx_vnni_in_avx512()});
  if (missing_features(Isa::kAmxInt8).empty()) all.push_back({"amx", &int8_amx()});
#endif
  return all;
}

}  // namespace sparsed::cpu
