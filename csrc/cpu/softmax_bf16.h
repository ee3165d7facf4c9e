// Scores and softmax of one chunk where the probabilities are bfloat16.
//
//   p_j = bfloat16(exp2(s_j - m))        sum = sum_j p_j, as rounded        m near, and above, the largest s_j
//
// Maximum    There is no pass that looks for it. m is set 16 above the largest score of the first keys, because
//            bfloat16 has the range for that. It moves only when a score comes near it, and by whole numbers, so that
//            everything that is already there is scaled by exact powers of two.
// Exponential exp2 runs in fixed point on 16-bit lanes (Bf16Pairs), 32 scores an instruction. Its error is 1.75e-3 rms;
//            rounding to bfloat16 has 1.66e-3 by itself.
// Sums       They are sums of the rounded probabilities, so that numerator and denominator of the output round alike.
//            The sum behind lse is kept in float32 where lse is asked for.
// Algorithm  for each kStep keys of the chunk:
//              their exponentials, while the products of the next keys run beside them
//              if a score came too near to m: raise m, scale everything that the chunk has so far, and repeat
// Huge scores and NaN are refused and take the softmax in float32 (softmax.h).
// `Kernel` is a micro-kernel with Pairs.
#pragma once

#include "cpu/softmax.h"

namespace sparsed::cpu {
namespace {

constexpr float kHeadroom = 16.f;  // of bfloat16's range of 126 below 1: probabilities reach down to 2^-110
// Beyond it float32 no longer holds the fraction of an exponent: such chunks, and NaN, take the softmax in float32.
constexpr float kFarScore = 0x1p14f;

// Sums of the chunk so far: of the cell at hand, of the cells before it, and for lse.
template <class Vec, int NV>
struct ChunkSums {
  Vec cell[NV], total[NV], exact[NV];

  void scale(int v, Vec by) {
    cell[v] = cell[v] * by;
    total[v] = total[v] * by;
    exact[v] = exact[v] * by;
  }
};

// Probabilities of the chunk's keys from `first` on, whose scores s are; the products of `beside` run meanwhile. False:
// a score may have passed its maximum.
template <class Kernel, int NV, Sums kSums, bool kLse>
bool exponentiate(const Chunk& chunk, int first, int keys, const float* s, const SoftmaxState<Kernel>& state,
                  typename Kernel::Prob* p, ChunkSums<typename Kernel::Vec, NV>& sums,
                  typename Kernel::template Scores<NV>& beside) {
  using Vec = typename Kernel::Vec;
  using Pairs = typename Kernel::Pairs;
  constexpr int kRun = 8;  // keys between products
  constexpr int kQ = Kernel::kQueries, kL = Vec::kLanes;
  const Vec scale = Vec::set(chunk.scale), unit_scale = Vec::set(chunk.scale * Pairs::kUnit);
  Vec from[NV], origin[NV];
  for (int v = 0; v < NV; ++v) {
    from[v] = Vec::load(state.max + v * kL);
    origin[v] = Pairs::origin(from[v]);
  }
  const int products = beside.left();
  bool within = true;
  for (int key = 0; key < keys;) {
    const int cell = (first + key) / chunk.cell_keys, cell_end = (cell + 1) * chunk.cell_keys - first;
    Vec sum[NV], exact[NV];  // in registers
    for (int v = 0; v < NV; ++v) {
      sum[v] = sums.cell[v];
      exact[v] = sums.exact[v];
    }
    for (const int end = cell_end < keys ? cell_end : keys; key < end; key += kRun) {
      for (int i = key; i < key + kRun; i += 2) {
        for (int v = 0; v < NV; ++v) {
          const Vec s0 = Vec::load(s + i * kQ + v * kL), s1 = Vec::load(s + (i + 1) * kQ + v * kL);
          const Pairs pairs = Pairs::exp2(s0, s1, unit_scale, origin[v]);
          pairs.store(Kernel::pairs_at(p, first + i, v));
          sum[v] = pairs.add_to(sum[v]);
          if constexpr (kLse) {
            exact[v] = exact[v] + (Kernel::exp2_probability(fma(s0, scale, Vec::zero() - from[v])) +
                                   Kernel::exp2_probability(fma(s1, scale, Vec::zero() - from[v])));
          }
        }
      }
      while ((products - beside.left()) * keys < products * (key + kRun)) beside.step();
    }
    const bool whole = key == cell_end || first + key == chunk.keys;
    for (int v = 0; v < NV; ++v) {
      within = within && !any_greater(sum[v], Vec::set(Pairs::kNearTop));
      sums.exact[v] = exact[v];
      sums.cell[v] = whole ? Vec::zero() : sum[v];
      if (!whole) continue;
      sums.total[v] = sums.total[v] + sum[v];
      if constexpr (kSums == Sums::kShared) sum[v].store(chunk.cells + cell * kQ + v * kL);
    }
  }
  return within;
}

// Moves the maxima above the scores s of the chunk's keys from `first` on, and scales what the chunk has so far. False:
// the scores are not for bfloat16's softmax. (Where a step is a whole chunk there is nothing so far.)
template <class Kernel, int NV, Sums kSums>
bool raise_max(const Chunk& chunk, int first, int keys, const float* s, bool fresh, SoftmaxState<Kernel>& state,
               typename Kernel::Prob* p, ChunkSums<typename Kernel::Vec, NV>& sums) {
  using Vec = typename Kernel::Vec;
  using Pairs = typename Kernel::Pairs;
  constexpr int kQ = Kernel::kQueries, kL = Vec::kLanes;
  for (int v = 0; v < NV; ++v) {
    Vec highest = Vec::set(kLowest);
    for (int key = 0; key < keys; ++key) {
      const Vec score = Vec::load(s + key * kQ + v * kL);
      if (Pairs::any_nan(score)) return false;
      highest = max(score, highest);
    }
    const Vec largest = highest * Vec::set(chunk.scale), top = largest + Vec::set(kHeadroom);
    if (any_greater(magnitude(largest), Vec::set(kFarScore))) return false;
    if (fresh) {
      top.store(state.max + v * kL);
      continue;
    }
    const Vec before = Vec::load(state.max + v * kL);
    const Vec up = Pairs::ceil(max(top - before, Vec::zero())), by = exp2(Vec::zero() - up);
    (before + up).store(state.max + v * kL);
    (Vec::load(state.alpha + v * kL) * by).store(state.alpha + v * kL);
    sums.scale(v, by);
    for (int key = 0; key < first; key += 2) {
      typename Kernel::Prob* at = Kernel::pairs_at(p, key, v);
      Pairs::load(at).scaled_down(up).store(at);
    }
    if constexpr (kSums == Sums::kShared) {
      for (int cell = 0; cell < first / chunk.cell_keys; ++cell) {
        float* at = chunk.cells + cell * kQ + v * kL;
        (Vec::load(at) * by).store(at);
      }
    }
  }
  return true;
}

enum class SoftmaxResult { kRefused, kSameMax, kNewMax };

// softmax() of softmax.h for bfloat16, together with the scores: Kernel::kStep keys at a time, the products of the next
// ones beside the exponentials of these, so that both fit in L1 and overlap. kRefused: nothing was changed.
template <class Kernel, int NV, Sums kSums, bool kLse, class Scores>
SoftmaxResult softmax_bf16(const Chunk& chunk, const Scores& scores, bool fresh, SoftmaxState<Kernel>& state, float* s,
                           typename Kernel::Prob* p) {
  static_assert(Kernel::kStep == Kernel::kChunk || 2 * Kernel::kStep <= Kernel::kChunk,
                "s holds a chunk: one step, or two in turns");
  using Vec = typename Kernel::Vec;
  constexpr int kL = Vec::kLanes;
  const SoftmaxState<Kernel> before = state;
  ChunkSums<typename Kernel::Vec, NV> sums;
  for (int v = 0; v < NV; ++v) {
    sums.cell[v] = sums.total[v] = sums.exact[v] = Vec::zero();
    const bool far = any_greater(magnitude(Vec::load(state.max + v * kL)), Vec::set(kFarScore));
    if (far && !fresh) return SoftmaxResult::kRefused;
    Vec::set(1.f).store(state.alpha + v * kL);
  }
  const auto keys_from = [&](int first) {
    const int keys = chunk.keys - first;
    return keys < Kernel::kStep ? keys : Kernel::kStep;
  };
  for (auto task = scores.begin(0, keys_from(0) / Kernel::kGroup, s); task.left();) task.step();
  SoftmaxResult result = SoftmaxResult::kSameMax;
  for (int first = 0; first < chunk.keys; first += Kernel::kStep) {
    const int keys = keys_from(first), next = first + keys;
    float* current = s + first % (2 * Kernel::kStep) * Kernel::kQueries;
    auto beside = scores.begin(next / Kernel::kGroup, keys_from(next) / Kernel::kGroup,
                               s + next % (2 * Kernel::kStep) * Kernel::kQueries);
    scores.mask(first / Kernel::kGroup, keys / Kernel::kGroup, current);
    const bool start = fresh && first == 0;
    ChunkSums<typename Kernel::Vec, NV> tried = sums;
    if (start || !exponentiate<Kernel, NV, kSums, kLse>(chunk, first, keys, current, state, p, tried, beside)) {
      if (!raise_max<Kernel, NV, kSums>(chunk, first, keys, current, start, state, p, sums)) {
        state = before;
        return SoftmaxResult::kRefused;
      }
      tried = sums;
      exponentiate<Kernel, NV, kSums, kLse>(chunk, first, keys, current, state, p, tried, beside);
      result = SoftmaxResult::kNewMax;
    }
    sums = tried;
  }
  for (int v = 0; v < NV; ++v) {
    const Vec alpha = Vec::load(state.alpha + v * kL);
    fma(Vec::load(state.sum + v * kL), alpha, sums.total[v]).store(state.sum + v * kL);
    fma(Vec::load(state.exact_sum + v * kL), alpha, sums.exact[v]).store(state.exact_sum + v * kL);
    if constexpr (kSums == Sums::kShared) Vec::load(state.max + v * kL).store(chunk.chunk_max + v * kL);
  }
  return result;
}

}  // namespace
}  // namespace sparsed::cpu
