#include "cpu/isa.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparsed::cpu {
namespace {

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf) {
  Leaf r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

// XCR0 states that the system saves: 0x6 AVX, 0xe6 AVX-512, 0x60000 AMX tiles.
bool system_saves(unsigned long long states) {
  if (!(cpuid(1, 0).ecx & (1u << 27))) return false;  // OSXSAVE
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const unsigned long long xcr0 = (static_cast<unsigned long long>(high) << 32) | low;
  return (xcr0 & states) == states;
}

// vdpbf16ps runs at the rate of float32 multiply-adds there; Intel's is several times slower, and stands behind AMX.
bool full_rate_bf16() {
  const Leaf vendor = cpuid(0, 0);
  return vendor.ebx == 0x68747541u && vendor.edx == 0x69746e65u && vendor.ecx == 0x444d4163u;  // AuthenticAMD
}

// Linux hands out the tile registers on request (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool request_tiles() {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

struct Feature {
  const char* name;
  bool present;
};

std::vector<Feature> features(Isa isa) {
  const Leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  switch (isa) {
    case Isa::kScalar: return {};
    case Isa::kAvx2:
      return {{"avx2", (seven.ebx & (1u << 5)) != 0},
              {"fma", (one.ecx & (1u << 12)) != 0},
              {"f16c", (one.ecx & (1u << 29)) != 0},
              {"operating system support for AVX", system_saves(0x6)}};
    case Isa::kAvxVnni: {
      std::vector<Feature> all = features(Isa::kAvx2);
      all.push_back({"avx_vnni", (seven_one.eax & (1u << 4)) != 0});
      return all;
    }
    case Isa::kAvx512:
      return {{"avx512f", (seven.ebx & (1u << 16)) != 0},
              {"avx512dq", (seven.ebx & (1u << 17)) != 0},
              {"avx512bw", (seven.ebx & (1u << 30)) != 0},
              {"avx512vl", (seven.ebx & (1u << 31)) != 0},
              {"fma", (one.ecx & (1u << 12)) != 0},
              {"f16c", (one.ecx & (1u << 29)) != 0},
              {"operating system support for AVX-512", system_saves(0xe6)}};
    case Isa::kAvx512Vnni: {
      std::vector<Feature> all = features(Isa::kAvx512);
      all.push_back({"avx512_vnni", (seven.ecx & (1u << 11)) != 0});
      return all;
    }
    case Isa::kAvx512Bf16: {
      std::vector<Feature> all = features(Isa::kAvx512);
      all.push_back({"avx512_vbmi", (seven.ecx & (1u << 1)) != 0});
      all.push_back({"avx512_bf16", (seven_one.eax & (1u << 5)) != 0});
      all.push_back({"vdpbf16ps at full rate (AMD Zen 4 and later)", full_rate_bf16()});
      return all;
    }
    case Isa::kAmx: {
      std::vector<Feature> all = features(Isa::kAvx512);
      all.push_back({"avx512_vbmi", (seven.ecx & (1u << 1)) != 0});
      all.push_back({"avx512_bf16", (seven_one.eax & (1u << 5)) != 0});
      all.push_back({"amx_tile", (seven.edx & (1u << 24)) != 0});
      all.push_back({"amx_bf16", (seven.edx & (1u << 22)) != 0});
      const bool saved = system_saves(0x60000);
      all.push_back({"operating system support for AMX", saved && request_tiles()});
      return all;
    }
    case Isa::kAmxInt8: {
      std::vector<Feature> all = features(Isa::kAmx);
      all.push_back({"amx_int8", (seven.edx & (1u << 25)) != 0});
      return all;
    }
  }
  return {};
}

#endif

}  // namespace

std::vector<std::string> missing_features(Isa isa) {
  std::vector<std::string> missing;
#if defined(__x86_64__)
  for (const Feature& feature : features(isa)) {
    if (!feature.present) missing.push_back(std::string("no ") + feature.name);
  }
#else
  if (isa != Isa::kScalar) missing.push_back("not an x86-64 processor");
#endif
  return missing;
}

}  // namespace sparsed::cpu
