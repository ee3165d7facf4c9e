// The instructions that the kernels use on compute capability 8.0 and up, each in a few lines of PTX. Kernels use no
// other CUDA built-ins, so that tests/cuda_emulator, which has host versions of these functions, can run their source.
// Shared memory is addressed in bytes from the start of the block's (dynamic) shared memory. Fragment layouts are those
// of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define SPARSED_DEVICE __device__ __forceinline__
#define SPARSED_UNROLL _Pragma("unroll")
#define SPARSED_UNROLL_BY(n) _Pragma(SPARSED_TEXT(unroll n))
#define SPARSED_TEXT(x) #x

namespace sparsed::cuda {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
template <class T>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<Bf16> = true;

// --- place -----------------------------------------------------------------------------------------------------------

SPARSED_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SPARSED_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SPARSED_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
SPARSED_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }

// --- memory ----------------------------------------------------------------------------------------------------------

SPARSED_DEVICE uint32_t shared_window() {
  extern __shared__ __align__(1024) unsigned char shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

SPARSED_DEVICE float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(shared_window() + address) : "memory");
  return value;
}
SPARSED_DEVICE void store_shared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared_window() + address), "f"(value) : "memory");
}
SPARSED_DEVICE void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared_window() + address), "r"(value) : "memory");
}
SPARSED_DEVICE uint4 load_shared16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared_window() + address)
               : "memory");
  return v;
}

// T: up to 16 bytes, aligned to its size.
template <class T>
SPARSED_DEVICE T load_global(const T* address) {
  return *address;
}
template <class T>
SPARSED_DEVICE void store_global(T* address, const T& value) {
  *address = value;
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

// Copies 16 bytes between addresses aligned to 16. If not `live`, it writes zeros and does not read the source.
SPARSED_DEVICE void copy_async(uint32_t shared, const void* global, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_window() + shared),
               "l"(__cvta_generic_to_global(global)), "r"(live ? 16 : 0)
               : "memory");
}
SPARSED_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are in flight, which are the latest ones.
template <int kPending>
SPARSED_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- matrices: all 32 lanes ------------------------------------------------------------------------------------------

// Loads four 8x8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8.
SPARSED_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_window() + address)
               : "memory");
}
SPARSED_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_window() + address)
               : "memory");
}

// c += A (16x16, rows) * B (16x8, columns).
template <class T>
SPARSED_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsBf16<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// --- lanes and barriers ----------------------------------------------------------------------------------------------

template <class T>
SPARSED_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
template <class T>
SPARSED_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(~0u, value, lane);
}
SPARSED_DEVICE uint32_t vote(bool predicate) { return __ballot_sync(~0u, predicate); }
SPARSED_DEVICE void sync_warp() { __syncwarp(); }
SPARSED_DEVICE void sync_threads() { __syncthreads(); }
// `threads`, a multiple of 32, meet at barrier `id` (1 ... 15). barrier_arrive does not wait for the others.
SPARSED_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
SPARSED_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- numbers ---------------------------------------------------------------------------------------------------------

SPARSED_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SPARSED_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SPARSED_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Returns max(a, b), or the other argument if one is NaN.
SPARSED_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
SPARSED_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// Rounds two floats to nearest even and packs them, `low` in the low half.
template <class T>
SPARSED_DEVICE uint32_t pack_pair(float low, float high) {
  uint32_t pair;
  if constexpr (kIsBf16<T>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

SPARSED_DEVICE float to_float(float x) { return x; }
SPARSED_DEVICE float to_float(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
SPARSED_DEVICE float to_float(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
SPARSED_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return T{static_cast<uint16_t>(pack_pair<T>(x, 0.f))};
  }
}
SPARSED_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
// Returns x. The compiler recomputes values that depend on it in each iteration of a loop, so they take no registers.
SPARSED_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
SPARSED_DEVICE int count_bits(uint64_t x) { return __popcll(x); }

}  // namespace sparsed::cuda
