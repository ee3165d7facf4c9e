// What compute capability 9.0 adds, for the host forms in cuda/sm90/prims.cuh: barriers in memory, the tensor memory
// accelerator (TMA) and asynchronous warpgroup products.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "machine.h"

namespace sparsed::emulator {

// The fields that the driver encodes; 16-bit elements, 128-byte swizzle.
struct TensorMap {
  const std::byte* data = nullptr;
  std::array<uint64_t, 4> size{};    // columns, tokens, heads, batch
  std::array<uint64_t, 3> stride{};  // of tokens, heads and batch, in bytes
  std::array<uint32_t, 2> box{};     // columns, tokens
};

void mbarrier_init(uint32_t address, int arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint32_t address, uint32_t bytes);
void mbarrier_wait(uint32_t address, uint32_t parity, Where where);

void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, const std::array<int64_t, 4>& at);
void fence_async_proxy(Where where);

bool elect(Where where);
void set_registers(int count, bool claim, Where where);

// One lane's part of a product.
struct WgmmaLane {
  float* d;
  uint64_t a_descriptor;
  const uint32_t* a_registers;  // nullptr: A is in shared memory
  uint64_t b_descriptor;
};
struct WgmmaShape {
  int tiles;  // of 8 columns
  bool bf16;
  bool transposed;
  bool accumulate;
};
void wgmma(const WgmmaLane& lane, const WgmmaShape& shape, Where where);
struct WgmmaFenced {
  const float* d;
  const uint32_t* a;  // nullptr: none
  int a_count;
};
void wgmma_fence(const WgmmaFenced& registers, Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, float* d, Where where);

}  // namespace sparsed::emulator
