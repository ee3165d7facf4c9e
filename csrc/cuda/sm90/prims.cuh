// The additional instructions of compute capability 9.0a: barriers in memory, tile copies by the tensor memory
// accelerator (TMA), warpgroup matrix products, and moving registers between warpgroups. tests/cuda_emulator/cuda/ has
// host versions of them.
#pragma once

#include "cuda/common/prims.cuh"
#include "cuda/params.h"

namespace sparsed::cuda {

// --- barriers in shared memory: 8 bytes each -------------------------------------------------------------------------

// One thread calls this. An mbarrier_init_fence() and a barrier must follow before any thread uses it. A phase ends
// after `arrivals` arrivals.
SPARSED_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_window() + barrier), "r"(arrivals) : "memory");
}
SPARSED_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
SPARSED_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_window() + barrier) : "memory");
}
// Arrives. The phase does not end before tile copies have written `bytes`.
SPARSED_DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_window() + barrier), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity is over. Phases count from 0.
SPARSED_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_window() + barrier),
      "r"(parity)
      : "memory");
}

// --- tile copies -----------------------------------------------------------------------------------------------------

SPARSED_DEVICE void tma_prefetch(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Copies the box at (column, token, head, batch) to `shared`, with the swizzle of the map and with zeros beyond the
// array. Its bytes count at `barrier`.
SPARSED_DEVICE void tma_load(uint32_t shared, const TensorMap& map, uint32_t barrier, int column, int token, int head,
                             int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_window() + shared),
      "l"(&map), "r"(shared_window() + barrier), "r"(column), "r"(token), "r"(head), "r"(batch)
      : "memory");
}
// Orders this warp's earlier accesses to shared memory before later ones of the TMA and the matrix units.
SPARSED_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- warps -----------------------------------------------------------------------------------------------------------

// Returns true in one lane. All 32 lanes call this.
SPARSED_DEVICE bool elect() {
  uint32_t chosen;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(chosen));
  return chosen != 0;
}
// All warps of a warpgroup call these functions.
template <int kRegisters>
SPARSED_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
SPARSED_DEVICE void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- warpgroup products ----------------------------------------------------------------------------------------------

// Four warps compute D [64, N] += A [64, 16] B [16, N] asynchronously. Warp w holds the rows 16 w ... 16 w + 15, and
// d[n] the columns 8 n ... 8 n + 7 in the accumulator layout of mma. A in registers has the operand layout of mma.

// Describes a matrix in shared memory with rows of 128 bytes and the 128-byte swizzle, as tma_load writes it. A row
// holds K values of a row of A (or a column of B), or with `transposed` the columns of B for one value of K.
// `group_bytes` is the distance between groups of 8 rows. `panel_bytes`, used only if transposed, is that between 64
// columns of B.
SPARSED_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t panel_bytes, uint32_t group_bytes) {
  const uint64_t start = (shared_window() + address) >> 4 & 0x3fff;
  return start | static_cast<uint64_t>(panel_bytes >> 4) << 16 | static_cast<uint64_t>(group_bytes >> 4) << 32 |
         uint64_t{1} << 62;
}

// Keeps the compiler from moving uses of these registers across the call.
template <int kTiles>
SPARSED_DEVICE void pin(float (&r)[kTiles][4]) {
  SPARSED_UNROLL
  for (int i = 0; i < kTiles * 4; ++i) asm volatile("" : "+f"(r[i / 4][i % 4])::"memory");
}
template <int kTiles>
SPARSED_DEVICE void pin(uint32_t (&r)[kTiles][4]) {
  SPARSED_UNROLL
  for (int i = 0; i < kTiles * 4; ++i) asm volatile("" : "+r"(r[i / 4][i % 4])::"memory");
}

// Call this before the first product of a group. It waits for the warp's accesses to these accumulators and to A in
// registers.
template <int kTiles>
SPARSED_DEVICE void wgmma_fence(float (&d)[kTiles][4]) {
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
template <int kTiles, int kSteps>
SPARSED_DEVICE void wgmma_fence(float (&d)[kTiles][4], uint32_t (&a)[kSteps][4]) {
  pin(a);
  wgmma_fence(d);
}
SPARSED_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending of the warp's groups are in flight, which are the latest ones. `d` is then ready.
template <int kPending, int kTiles>
SPARSED_DEVICE void wgmma_wait(float (&d)[kTiles][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  pin(d);
}

#define SPARSED_ACCUMULATORS_64                                                                                \
  "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),     \
      "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), \
      "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), \
      "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), \
      "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
#define SPARSED_NAMES_64                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define SPARSED_ACCUMULATORS_128                                                                                      \
  "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),            \
      "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),        \
      "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]),        \
      "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),        \
      "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]),        \
      "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]), "+f"(d[10][1]),      \
      "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]), "+f"(d[12][0]), \
      "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]), \
      "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), \
      "+f"(d[15][3])
#define SPARSED_NAMES_128                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// clang-format off
#define SPARSED_WGMMA(N, TYPE, A, B, ACCUMULATE, TRANSPOSED, ...)                                             \
  asm volatile(                                                                                               \
      "{\n"                                                                                                   \
      ".reg .pred p;\n"                                                                                       \
      "setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                                                   \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " "                                     \
      SPARSED_NAMES_##N ", " A ", " B ", p, 1, 1, " TRANSPOSED ";\n"                                          \
      "}"                                                                                                     \
      : SPARSED_ACCUMULATORS_##N                                                                              \
      : __VA_ARGS__, "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kTransposed)))
// clang-format on
#define SPARSED_WGMMA_SHARED(N, TYPE, A, B, ACCUMULATE, TRANSPOSED) \
  SPARSED_WGMMA(N, TYPE, A, B, ACCUMULATE, "0, " TRANSPOSED, "l"(a), "l"(b))
#define SPARSED_WGMMA_REGISTERS(N, TYPE, A, B, ACCUMULATE, TRANSPOSED) \
  SPARSED_WGMMA(N, TYPE, A, B, ACCUMULATE, TRANSPOSED, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// Multiplies A and B in shared memory, given by descriptors; kTransposed refers to B. Without `accumulate`, D is
// overwritten.
template <class T, bool kTransposed, int kTiles>
SPARSED_DEVICE void wgmma(float (&d)[kTiles][4], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16);
  if constexpr (kTiles == 8 && kIsBf16<T>) {
    SPARSED_WGMMA_SHARED(64, "bf16", "%32", "%33", "%34", "%35");
  } else if constexpr (kTiles == 8) {
    SPARSED_WGMMA_SHARED(64, "f16", "%32", "%33", "%34", "%35");
  } else if constexpr (kIsBf16<T>) {
    SPARSED_WGMMA_SHARED(128, "bf16", "%64", "%65", "%66", "%67");
  } else {
    SPARSED_WGMMA_SHARED(128, "f16", "%64", "%65", "%66", "%67");
  }
}
// Multiplies A in registers, which must keep their values until the wait for the product.
template <class T, bool kTransposed, int kTiles>
SPARSED_DEVICE void wgmma(float (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kTiles == 8 || kTiles == 16);
  if constexpr (kTiles == 8 && kIsBf16<T>) {
    SPARSED_WGMMA_REGISTERS(64, "bf16", "{%32, %33, %34, %35}", "%36", "%37", "%38");
  } else if constexpr (kTiles == 8) {
    SPARSED_WGMMA_REGISTERS(64, "f16", "{%32, %33, %34, %35}", "%36", "%37", "%38");
  } else if constexpr (kIsBf16<T>) {
    SPARSED_WGMMA_REGISTERS(128, "bf16", "{%64, %65, %66, %67}", "%68", "%69", "%70");
  } else {
    SPARSED_WGMMA_REGISTERS(128, "f16", "{%64, %65, %66, %67}", "%68", "%69", "%70");
  }
}

}  // namespace sparsed::cuda
