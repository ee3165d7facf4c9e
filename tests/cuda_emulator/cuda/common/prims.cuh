// Host forms of csrc/cuda/prims.cuh, found first on the include path of the tests: see machine.h for their parts.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/float16.h"
#include "machine.h"

#define SPARSED_DEVICE inline
#define SPARSED_UNROLL
#define SPARSED_UNROLL_BY(n)

namespace sparsed::cuda {

using emulator::Where;

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// --- place -----------------------------------------------------------------------------------------------------------

inline int thread_index() { return emulator::thread().index; }
inline int block_threads() { return emulator::block().launch.threads; }
inline int block_index() { return emulator::block().index; }
inline int grid_blocks() { return emulator::block().launch.blocks; }

// --- memory ----------------------------------------------------------------------------------------------------------

template <class T>
T read_shared(uint32_t address, const char* kind, Where where) {
  emulator::note_access(where, kind, address, sizeof(T));
  emulator::Block& block = emulator::block();
  T value;
  std::memcpy(&value, block.shared.read(address, sizeof(T), block.actor(emulator::thread())), sizeof(T));
  return value;
}
template <class T>
void write_shared(uint32_t address, const T& value, const char* kind, Where where) {
  emulator::note_access(where, kind, address, sizeof(T));
  emulator::Block& block = emulator::block();
  std::memcpy(block.shared.write(address, sizeof(T), block.actor(emulator::thread())), &value, sizeof(T));
}

inline float load_shared(uint32_t address, Where where = Where::current()) {
  return read_shared<float>(address, "ld.shared", where);
}
inline uint4 load_shared16(uint32_t address, Where where = Where::current()) {
  return read_shared<uint4>(address, "ld.shared.v4", where);
}
inline void store_shared(uint32_t address, float value, Where where = Where::current()) {
  write_shared(address, value, "st.shared", where);
}
inline void store_shared(uint32_t address, uint32_t value, Where where = Where::current()) {
  write_shared(address, value, "st.shared", where);
}

template <class T>
T load_global(const T* address) {
  return emulator::load_global(address);
}
template <class T>
void store_global(T* address, const T& value) {
  emulator::store_global(address, value);
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

inline void copy_async(uint32_t shared, const void* global, bool live, Where where = Where::current()) {
  emulator::Block& block = emulator::block();
  emulator::Thread& thread = emulator::thread();
  emulator::note_access(where, "cp.async", shared, 16);
  if (live) emulator::check_global(global, 16, false);
  block.shared.begin_flight(shared, 16, block.actor(thread));
  emulator::CopyGroupEntry entry{shared, live ? global : nullptr, 16, {}};
  if (block.launch.landing == emulator::Landing::kEarly) {
    if (live) std::memcpy(entry.early.data(), global, 16);
    block.shared.land(shared, entry.early.data(), 16);
  }
  thread.open.push_back(entry);
}
inline void copy_async_commit() {
  emulator::Thread& thread = emulator::thread();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
template <int kPending>
void copy_async_wait() {
  emulator::Block& block = emulator::block();
  emulator::Thread& thread = emulator::thread();
  while (thread.groups.size() > kPending) {
    for (emulator::CopyGroupEntry& entry : thread.groups.front()) {
      if (block.launch.landing == emulator::Landing::kLate && entry.source) {
        std::memcpy(entry.early.data(), entry.source, 16);
      }
      block.shared.end_flight(entry.address, entry.early.data(), 16, block.actor(thread));
    }
    thread.groups.erase(thread.groups.begin());
  }
}

// --- matrices --------------------------------------------------------------------------------------------------------

inline void load_matrices(uint32_t (&r)[4], uint32_t address, bool transposed, Where where) {
  struct Argument {
    uint32_t address;
    uint32_t* r;
  } argument{address, r};
  emulator::note_access(where, "ldmatrix", address, 16);  // phases of 8 rows, as quarters of a warp
  emulator::warp_collective(where, "ldmatrix", argument, [&](std::array<Argument*, 32>& lanes) {
    emulator::Block& block = emulator::block();
    for (size_t matrix = 0; matrix < 4; ++matrix) {
      uint16_t rows[8][8];
      for (size_t i = 0; i < 8; ++i) {
        const auto actor = block.actor(emulator::thread(), true);
        std::memcpy(rows[i], block.shared.read(lanes[matrix * 8 + i]->address, 16, actor), 16);
      }
      for (size_t lane = 0; lane < 32; ++lane) {
        const size_t major = lane / 4, minor = lane % 4 * 2;
        const uint32_t low = transposed ? rows[minor][major] : rows[major][minor];
        const uint32_t high = transposed ? rows[minor + 1][major] : rows[major][minor + 1];
        lanes[lane]->r[matrix] = low | high << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&r)[4], uint32_t address, Where where = Where::current()) {
  load_matrices(r, address, false, where);
}
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address, Where where = Where::current()) {
  load_matrices(r, address, true, where);
}

template <class T>
float half_of(uint32_t pair, int index) {
  const uint16_t bits = static_cast<uint16_t>(index ? pair >> 16 : pair);
  return std::is_same_v<T, Bf16> ? bf16_to_float(bits) : f16_to_float(bits);
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where = Where::current()) {
  struct Argument {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } argument{c, a, {b0, b1}};
  emulator::warp_collective(where, "mma", argument, [](std::array<Argument*, 32>& lanes) {
    float left[16][16], right[8][16];  // right: [column][k]
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t group = lane / 4, pair = lane % 4 * 2;
      for (size_t i = 0; i < 8; ++i) {  // a0 ... a7
        const size_t row = group + (i / 2 % 2 ? 8 : 0), column = pair + i % 2 + (i < 4 ? 0 : 8);
        left[row][column] = half_of<T>(lanes[lane]->a[i / 2], static_cast<int>(i % 2));
      }
      for (size_t i = 0; i < 4; ++i) {  // b0 ... b3
        right[group][pair + i % 2 + (i < 2 ? 0 : 8)] = half_of<T>(lanes[lane]->b[i / 2], static_cast<int>(i % 2));
      }
    }
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t group = lane / 4, pair = lane % 4 * 2;
      for (size_t i = 0; i < 4; ++i) {  // c0 ... c3
        const float* x = left[group + (i < 2 ? 0 : 8)];
        const float* y = right[pair + i % 2];
        float sum = 0;
        for (size_t k = 0; k < 16; ++k) sum += x[k] * y[k];
        lanes[lane]->c[i] += sum;
      }
    }
  });
}

// --- lanes and barriers ----------------------------------------------------------------------------------------------

template <class T>
T exchange(T value, int lane, const char* name, Where where) {
  struct Argument {
    T value, result;
    int lane;
  } argument{value, value, lane};
  emulator::warp_collective(where, name, argument, [](std::array<Argument*, 32>& lanes) {
    for (Argument* own : lanes) own->result = lanes[static_cast<size_t>(own->lane & 31)]->value;
  });
  return argument.result;
}
template <class T>
T shuffle_xor(T value, int mask, Where where = Where::current()) {
  return exchange(value, emulator::thread().lane() ^ mask, "shfl.bfly", where);
}
template <class T>
T shuffle(T value, int lane, Where where = Where::current()) {
  return exchange(value, lane, "shfl.idx", where);
}
inline uint32_t vote(bool predicate, Where where = Where::current()) {
  struct Argument {
    bool predicate;
    uint32_t result;
  } argument{predicate, 0};
  emulator::warp_collective(where, "vote", argument, [](std::array<Argument*, 32>& lanes) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(lanes[i]->predicate) << i;
    for (Argument* lane : lanes) lane->result = bits;
  });
  return argument.result;
}
inline void sync_warp(Where where = Where::current()) { emulator::sync_warp(where); }
inline void sync_threads(Where where = Where::current()) {
  emulator::barrier(0, emulator::block().launch.threads, true, where);
}
inline void barrier_sync(int id, int threads, Where where = Where::current()) {
  emulator::barrier(id, threads, true, where);
}
inline void barrier_arrive(int id, int threads, Where where = Where::current()) {
  emulator::barrier(id, threads, false, where);
}

// --- numbers ---------------------------------------------------------------------------------------------------------

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;  // ftz
}
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal(float x) { return 1.f / x; }
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

template <class T>
uint32_t pack_pair(float low, float high) {
  const auto round = [](float x) { return std::is_same_v<T, Bf16> ? float_to_bf16(x) : float_to_f16(x); };
  return static_cast<uint32_t>(round(low)) | static_cast<uint32_t>(round(high)) << 16;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return bf16_to_float(x.bits); }
inline float to_float(F16 x) { return f16_to_float(x.bits); }
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return T{static_cast<uint16_t>(pack_pair<T>(x, 0.f))};
  }
}
inline uint32_t float_bits(float x) { return float_to_bits(x); }
inline int opaque(int x) { return x; }
inline int count_bits(uint64_t x) { return std::popcount(x); }

}  // namespace sparsed::cuda
