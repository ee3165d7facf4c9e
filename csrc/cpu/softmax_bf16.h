// Scores and softmax of one chunk where the probabilities are bfloat16.
//
//   p_j = bfloat16(exp2(s_j - m))        sum = sum_j p_j, as rounded        m near, and above, the largest s_j
//
// Maximum    There is no pass that looks for it. m is set 16 above the largest score of the first keys, because
//            bfloat16 has the range for that. It moves only when a score comes near it, and by whole numbers, so that
//            everything that is already there is scaled by exact powers of two.
// Exponential exp2 runs in fixed point on 16-bit lanes with a table (Bf16Pairs), 32 scores an instruction. Its error is
//            1.9e-3 rms; rounding to bfloat16 has 1.66e-3 by itself.
// Sums       They are sums of the rounded probabilities, so that numerator and denominator of the output round alike.
//            Where the output has a row of sums (kSumsInOutput) only those of a selection are added up here. The sum
//            behind lse is kept in float32 where lse is asked for.
// Algorithm  for each kStep keys of the chunk:
//              their scores
//              their exponentials, and the largest of them
//              if that came too near to 1: raise m, scale everything that the chunk has so far, and repeat
// Huge scores and NaN are refused and take the softmax in float32 (softmax.h).
// `Kernel` is a micro-kernel with Pairs.
#pragma once

#include "cpu/softmax.h"

namespace sparsed::cpu {
namespace {

constexpr float kHeadroom = 16.f;  // of bfloat16's range of 126 below 1: probabilities reach down to 2^-110
// Beyond it float32 no longer holds the fraction of an exponent: such chunks, and NaN, take the softmax in float32.
constexpr float kFarScore = 0x1p14f;

// Sums of the chunk so far, of the probabilities and for lse.
template <class Vec, int NV>
struct ChunkSums {
  Vec total[NV], exact[NV];

  ChunkSums() {
    for (int v = 0; v < NV; ++v) total[v] = exact[v] = Vec::zero();
  }
};

// Probabilities of the chunk's keys from `first` on, whose scores s are. False: a score may have passed its maximum;
// then the sums are as before.
template <class Kernel, int NV, Sums kSums, bool kLse>
bool exponentiate(const Chunk& chunk, int first, int keys, const float* s, const SoftmaxState<Kernel>& state,
                  typename Kernel::Prob* p, ChunkSums<typename Kernel::Vec, NV>& sums) {
  using Vec = typename Kernel::Vec;
  using Pairs = typename Kernel::Pairs;
  constexpr bool kCells = kSums == Sums::kShared;
  constexpr int kQ = Kernel::kQueries, kL = Vec::kLanes;
  const Vec scale = Vec::set(chunk.scale), unit_scale = Vec::set(chunk.scale * Pairs::kUnit);
  Vec from[NV], origin[NV];
  Pairs top[NV];
  for (int v = 0; v < NV; ++v) {
    from[v] = Vec::load(state.max + v * kL);
    origin[v] = Pairs::origin(from[v]);
    top[v] = Pairs::zero();
  }
  const auto near_top = [&] {
    bool near = false;
    for (int v = 0; v < NV; ++v) near = near || top[v].near_top();
    return near;
  };
  ChunkSums<Vec, NV> added;
  const int run = kCells && chunk.cell_keys < keys ? chunk.cell_keys : keys;  // within one cell
  for (int key = 0; key < keys; key += run) {
    const int end = key + run < keys ? key + run : keys;
    Vec sum[NV];
    for (int v = 0; v < NV; ++v) sum[v] = Vec::zero();
    for (int i = key; i < end; i += 2) {
      for (int v = 0; v < NV; ++v) {
        const Vec s0 = Vec::load(s + i * kQ + v * kL), s1 = Vec::load(s + (i + 1) * kQ + v * kL);
        const Pairs pairs = Pairs::exp2(s0, s1, unit_scale, origin[v]);
        pairs.store(Kernel::pairs_at(p, first + i, v));
        top[v] = Pairs::max(top[v], pairs);
        if constexpr (kCells || !Kernel::kSumsInOutput) sum[v] = pairs.add_to(sum[v]);
        if constexpr (kLse) {
          added.exact[v] = added.exact[v] + (Kernel::exp2_probability(fma(s0, scale, Vec::zero() - from[v])) +
                                             Kernel::exp2_probability(fma(s1, scale, Vec::zero() - from[v])));
        }
      }
    }
    if constexpr (kCells) {
      // A cell that goes on from the step before is the only one of this step: what is tried again was not added.
      if (near_top()) return false;
      float* cell = chunk.cells + (first + key) / chunk.cell_keys * kQ;
      const bool goes_on = (first + key) % chunk.cell_keys != 0;
      for (int v = 0; v < NV; ++v) (goes_on ? Vec::load(cell + v * kL) + sum[v] : sum[v]).store(cell + v * kL);
    }
    for (int v = 0; v < NV; ++v) added.total[v] = added.total[v] + sum[v];
  }
  if (near_top()) return false;
  for (int v = 0; v < NV; ++v) {
    sums.total[v] = sums.total[v] + added.total[v];
    sums.exact[v] = sums.exact[v] + added.exact[v];
  }
  return true;
}

// Moves the maxima above the scores s of the chunk's keys from `first` on, and scales what the chunk has so far. False:
// the scores are not for bfloat16's softmax.
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
    sums.total[v] = sums.total[v] * by;
    sums.exact[v] = sums.exact[v] * by;
    for (int key = 0; key < first; key += 2) {
      typename Kernel::Prob* at = Kernel::pairs_at(p, key, v);
      Pairs::load(at).scaled_down(up).store(at);
    }
    if constexpr (kSums == Sums::kShared) {
      for (int key = 0; key < first; key += chunk.cell_keys) {
        float* cell = chunk.cells + key / chunk.cell_keys * kQ + v * kL;
        (Vec::load(cell) * by).store(cell);
      }
    }
  }
  return true;
}

enum class SoftmaxResult { kRefused, kSameMax, kNewMax };

// softmax() of softmax.h for bfloat16, together with the scores: Kernel::kStep keys at a time, which stay in the
// first-level cache between the two. `scores(first group, groups, s)` computes them. kRefused: nothing was changed.
template <class Kernel, int NV, Sums kSums, bool kLse, class Scores>
SoftmaxResult softmax_bf16(const Chunk& chunk, const Scores& scores, bool fresh, SoftmaxState<Kernel>& state, float* s,
                           typename Kernel::Prob* p) {
  using Vec = typename Kernel::Vec;
  constexpr int kL = Vec::kLanes;
  Vec before[NV];
  for (int v = 0; v < NV; ++v) {
    before[v] = Vec::load(state.max + v * kL);
    const bool far = any_greater(magnitude(before[v]), Vec::set(kFarScore));
    if (far && !fresh) return SoftmaxResult::kRefused;
    Vec::set(1.f).store(state.alpha + v * kL);
  }
  ChunkSums<Vec, NV> sums;
  SoftmaxResult result = SoftmaxResult::kSameMax;
  for (int first = 0; first < chunk.keys; first += Kernel::kStep) {
    const int keys = chunk.keys - first < Kernel::kStep ? chunk.keys - first : Kernel::kStep;
    scores(first / Kernel::kGroup, keys / Kernel::kGroup, s);
    const bool start = fresh && first == 0;
    if (!start && exponentiate<Kernel, NV, kSums, kLse>(chunk, first, keys, s, state, p, sums)) continue;
    if (!raise_max<Kernel, NV, kSums>(chunk, first, keys, s, start, state, p, sums)) {
      for (int v = 0; v < NV; ++v) before[v].store(state.max + v * kL);
      return SoftmaxResult::kRefused;
    }
    exponentiate<Kernel, NV, kSums, kLse>(chunk, first, keys, s, state, p, sums);
    result = SoftmaxResult::kNewMax;
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
