// AMX (bf16 and int8) as functions: eight tile registers of 16 rows x 64 bytes. With SPARSED_AMX_EMULATED, in
// the tests, plain C++ follows the instructions' published definition on any machine.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef SPARSED_AMX_EMULATED
#include <cstring>

#include "core/float16.h"
#endif

namespace sparsed::cpu {
namespace {

#ifdef SPARSED_AMX_EMULATED

struct EmulatedTile {
  uint8_t row[16][64];
};
thread_local EmulatedTile emulated_tiles[8];

inline void tile_configure() {
  for (EmulatedTile& tile : emulated_tiles) std::memset(tile.row, 0xff, sizeof tile.row);  // NaN: nothing is set yet
}
inline void tile_release() {}

template <int T>
inline void tile_zero() {
  std::memset(emulated_tiles[T].row, 0, sizeof emulated_tiles[T].row);
}
template <int T>
inline void tile_load(const void* p, size_t stride_bytes) {
  for (int i = 0; i < 16; ++i)
    std::memcpy(emulated_tiles[T].row[i], static_cast<const uint8_t*>(p) + i * stride_bytes, 64);
}
template <int T>
inline void tile_store(void* p, size_t stride_bytes) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<uint8_t*>(p) + i * stride_bytes, emulated_tiles[T].row[i], 64);
}

template <int T>
inline void tile_load_stream(const void* p, size_t stride_bytes) {
  tile_load<T>(p, stride_bytes);
}

// TDPBF16PS: C[m][n] += A[m][2k] * B[k][2n] + A[m][2k + 1] * B[k][2n + 1].
template <int C, int A, int B>
inline void tile_dp() {
  for (int m = 0; m < 16; ++m) {
    float c[16];
    uint16_t a[32];
    std::memcpy(c, emulated_tiles[C].row[m], 64);
    std::memcpy(a, emulated_tiles[A].row[m], 64);
    for (int k = 0; k < 16; ++k) {
      uint16_t b[32];
      std::memcpy(b, emulated_tiles[B].row[k], 64);
      for (int n = 0; n < 16; ++n) {
        c[n] += bf16_to_float(a[2 * k]) * bf16_to_float(b[2 * n]);
        c[n] += bf16_to_float(a[2 * k + 1]) * bf16_to_float(b[2 * n + 1]);
      }
    }
    std::memcpy(emulated_tiles[C].row[m], c, 64);
  }
}

// TDPBSSD: C[m][n] += A[m][4k + i] * B[k][4n + i] for i in 0 ... 3, signed bytes and int32.
template <int C, int A, int B>
inline void tile_dp_int8() {
  for (int m = 0; m < 16; ++m) {
    uint32_t c[16];  // it wraps
    int8_t a[64];
    std::memcpy(c, emulated_tiles[C].row[m], 64);
    std::memcpy(a, emulated_tiles[A].row[m], 64);
    for (int k = 0; k < 16; ++k) {
      int8_t b[64];
      std::memcpy(b, emulated_tiles[B].row[k], 64);
      for (int n = 0; n < 64; ++n) c[n / 4] += static_cast<uint32_t>(a[4 * k + n % 4] * b[n]);
    }
    std::memcpy(emulated_tiles[C].row[m], c, 64);
  }
}

#else

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};

alignas(64) constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Written in assembly: GCC's intrinsics take literal register numbers only, and do not tell the compiler that they read
// and write memory.
inline void tile_configure() { __asm__ volatile("ldtilecfg %0" ::"m"(kTileConfig) : "memory"); }
inline void tile_release() { __asm__ volatile("tilerelease" ::: "memory"); }

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* p, size_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride_bytes), "i"(T) : "memory");
}
// For an operand that streams by once: it does not push what is used again out of the first-level cache.
template <int T>
inline void tile_load_stream(const void* p, size_t stride_bytes) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride_bytes), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* p, size_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride_bytes), "i"(T) : "memory");
}
template <int C, int A, int B>
inline void tile_dp() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void tile_dp_int8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace sparsed::cpu
