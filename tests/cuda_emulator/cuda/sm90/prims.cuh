// Host forms of csrc/cuda/sm90/prims.cuh: see sm90.h.
#pragma once

#include <cstring>

#include "cuda/common/prims.cuh"
#include "cuda/params.h"
#include "sm90.h"

namespace sparsed::cuda {

// --- barriers in shared memory ---------------------------------------------------------------------------------------

inline void mbarrier_init(uint32_t barrier, int arrivals) { emulator::mbarrier_init(barrier, arrivals); }
inline void mbarrier_init_fence() { emulator::mbarrier_init_fence(); }
inline void mbarrier_arrive(uint32_t barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_expect(uint32_t barrier, uint32_t bytes) { emulator::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint32_t barrier, uint32_t parity, Where where = Where::current()) {
  emulator::mbarrier_wait(barrier, parity, where);
}

// --- tile copies -----------------------------------------------------------------------------------------------------

// The emulator's fields in the first bytes of a map.
inline TensorMap encode_fields(const emulator::TensorMap& fields) {
  static_assert(sizeof(fields) <= sizeof(TensorMap));
  TensorMap map{};
  std::memcpy(map.opaque, &fields, sizeof(fields));
  return map;
}
inline emulator::TensorMap decode_fields(const TensorMap& map) {
  emulator::TensorMap fields;
  std::memcpy(static_cast<void*>(&fields), map.opaque, sizeof(fields));
  return fields;
}

inline void tma_prefetch(const TensorMap&) {}
inline void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int column, int token, int head,
                     int batch) {
  emulator::tma_load(shared, decode_fields(map), barrier, {column, token, head, batch});
}
inline void fence_async_proxy(Where where = Where::current()) { emulator::fence_async_proxy(where); }

// --- warps -----------------------------------------------------------------------------------------------------------

inline bool elect(Where where = Where::current()) { return emulator::elect(where); }
template <int kRegisters>
void release_registers(Where where = Where::current()) {
  emulator::set_registers(kRegisters, false, where);
}
template <int kRegisters>
void claim_registers(Where where = Where::current()) {
  emulator::set_registers(kRegisters, true, where);
}

// --- warpgroup products ----------------------------------------------------------------------------------------------

inline uint64_t matrix_descriptor(uint32_t address, uint32_t panel_bytes, uint32_t group_bytes) {
  return (address >> 4 & 0x3fff) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         static_cast<uint64_t>(group_bytes >> 4) << 32 | uint64_t{1} << 62;
}
template <class T, int kTiles>
void pin(T (&)[kTiles][4]) {}

template <int kTiles>
void wgmma_fence(float (&d)[kTiles][4], Where where = Where::current()) {
  emulator::wgmma_fence({d[0], nullptr, 0}, where);
}
template <int kTiles, int kSteps>
void wgmma_fence(float (&d)[kTiles][4], uint32_t (&a)[kSteps][4], Where where = Where::current()) {
  emulator::wgmma_fence({d[0], a[0], kSteps * 4}, where);
}
inline void wgmma_commit(Where where = Where::current()) { emulator::wgmma_commit(where); }
template <int kPending, int kTiles>
void wgmma_wait(float (&d)[kTiles][4], Where where = Where::current()) {
  emulator::wgmma_wait(kPending, d[0], where);
}
template <class T, bool kTransposed, int kTiles>
void wgmma(float (&d)[kTiles][4], uint64_t a, uint64_t b, bool accumulate, Where where = Where::current()) {
  emulator::wgmma({d[0], a, nullptr, b}, {kTiles, std::is_same_v<T, Bf16>, kTransposed, accumulate}, where);
}
template <class T, bool kTransposed, int kTiles>
void wgmma(float (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate, Where where = Where::current()) {
  emulator::wgmma({d[0], 0, a, b}, {kTiles, std::is_same_v<T, Bf16>, kTransposed, accumulate}, where);
}

}  // namespace sparsed::cuda
