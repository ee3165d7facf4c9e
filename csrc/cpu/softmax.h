// Softmax of one chunk of scores, in float32.
//
//   m' = max(m, max_j s_j)    alpha = exp2(m - m')    p_j = exp2(s_j - m')    sum' = alpha sum + sum_j p_j
//
// A lane is a query (the scores are transposed, see attention_kernel.h). Scores are in units of log2, with log2(e)
// inside scale. The block sums of the fused selection are partial sums of the same p_j, kept per cell of keys.
//
// Algorithm  one pass over the chunk for the maximum
//            the new maximum, alpha, and what the block sums are relative to
//            one pass for the exponentials, two keys at a time, which also writes P^T and adds up the cells
#pragma once

namespace sparsed::cpu {
namespace {

constexpr float kLowest = -3.0e38f;  // in place of -inf, so that a masked score minus it is -inf and not NaN
constexpr float kLn2 = 0.693147180559945309f;
// Beyond it half a unit in the last place of a scaled score may move an exponent by more than the exponential stands.
constexpr float kHugeScore = 0x1p24f;

// One query tile's softmax state; arrays of kQueries.
template <class Kernel>
struct SoftmaxState {
  float max[Kernel::kQueries];        // running maximum, scaled, or a little above it
  float sum[Kernel::kQueries];        // of probabilities relative to max; not used where O^T has them (kSumsInOutput)
  float exact_sum[Kernel::kQueries];  // the same where probabilities are not rounded, for lse
  float alpha[Kernel::kQueries];      // what the last chunk scaled the sums by
};

// Where the cells of a selection come from.
enum class Sums {
  kNone,
  kShared,    // the attention's probabilities, relative to the running maximum
  kChunkMax,  // relative to the chunk's maximum; the attention's follow by one factor per query
  kTwice,     // other scale: a second exponential, relative to the chunk's maximum
};

struct Chunk {
  int keys;
  float scale;
  float select_scale;
  int cell_keys;
  float* cells;  // first cell of the chunk
  float* chunk_max;
};

template <class Vec>
inline Vec magnitude(Vec x) {
  return max(x, Vec::zero() - x);
}

// Softmax of one chunk of S^T: updates max and sum, writes P^T, the cell sums, and alpha. False: alpha is 1 everywhere.
template <class Kernel, int NV, Sums kSums>
bool softmax(const Chunk& chunk, const float* s, SoftmaxState<Kernel>& state, typename Kernel::Prob* p) {
  using Vec = typename Kernel::Vec;
  constexpr int kQ = Kernel::kQueries, kL = Vec::kLanes;
  const Vec scale = Vec::set(chunk.scale), select_scale = Vec::set(chunk.select_scale);
  const Vec lowest = Vec::set(kLowest);
  Vec base[NV], factor[NV], select_base[NV], total[NV];
  Vec highest[NV];
  for (int v = 0; v < NV; ++v) highest[v] = lowest;
  // max(a, b) keeps b where a is NaN: a NaN score reaches the output through the exponential, not the maximum.
  for (int key = 0; key < chunk.keys; ++key) {
    for (int v = 0; v < NV; ++v) highest[v] = max(Vec::load(s + key * kQ + v * kL), highest[v]);
  }
  bool changed = false, huge = false;
  for (int v = 0; v < NV; ++v) {
    const Vec before = Vec::load(state.max + v * kL);
    const Vec chunk_max = max(highest[v] * scale, lowest);
    const Vec after = max(chunk_max, before);
    changed = any_greater(after, before) || changed;
    after.store(state.max + v * kL);
    exp2(before - after).store(state.alpha + v * kL);
    base[v] = kSums == Sums::kChunkMax ? chunk_max : after;
    factor[v] = exp2(chunk_max - after);
    select_base[v] = max(highest[v] * select_scale, lowest);
    total[v] = Vec::zero();
    const Vec largest = kSums == Sums::kTwice ? max(magnitude(base[v]), magnitude(select_base[v])) : magnitude(base[v]);
    huge = any_greater(largest, Vec::set(kHugeScore)) || huge;
    if constexpr (kSums == Sums::kShared || kSums == Sums::kChunkMax) base[v].store(chunk.chunk_max + v * kL);
    if constexpr (kSums == Sums::kTwice) select_base[v].store(chunk.chunk_max + v * kL);
  }
  const auto exponentials = [&](auto exponent) __attribute__((always_inline)) {
    for (int first = 0, cell = 0; first < chunk.keys; first += chunk.cell_keys, ++cell) {
      const int end = first + chunk.cell_keys < chunk.keys ? first + chunk.cell_keys : chunk.keys;
      Vec sum[NV], select_sum[NV];
      for (int v = 0; v < NV; ++v) sum[v] = select_sum[v] = Vec::zero();
      for (int key = first; key < end; key += 2) {
        for (int v = 0; v < NV; ++v) {
          const Vec s0 = Vec::load(s + key * kQ + v * kL), s1 = Vec::load(s + (key + 1) * kQ + v * kL);
          Vec e0 = Kernel::exp2_probability(exponent(s0, scale, base[v]));
          Vec e1 = Kernel::exp2_probability(exponent(s1, scale, base[v]));
          sum[v] = sum[v] + (e0 + e1);
          if constexpr (kSums == Sums::kTwice) {
            select_sum[v] = select_sum[v] + (Kernel::exp2_probability(exponent(s0, select_scale, select_base[v])) +
                                             Kernel::exp2_probability(exponent(s1, select_scale, select_base[v])));
          }
          if constexpr (kSums == Sums::kChunkMax) {
            e0 = e0 * factor[v];
            e1 = e1 * factor[v];
          }
          Kernel::store_pair(p, key, v, e0, e1);
        }
      }
      for (int v = 0; v < NV; ++v) {
        total[v] = total[v] + sum[v];
        if constexpr (kSums != Sums::kNone) {
          (kSums == Sums::kTwice ? select_sum[v] : sum[v]).store(chunk.cells + cell * kQ + v * kL);
        }
      }
    }
  };
  if (!huge) [[likely]] {
    exponentials([](Vec score, Vec by, Vec from) { return fma(score, by, Vec::zero() - from); });
  } else {  // in rows of huge scores rounded as the maximum was, whose exponent is then 0
    exponentials([](Vec score, Vec by, Vec from) {
      const Vec excess = magnitude(from) - Vec::set(kHugeScore);
      return select_positive(excess, score * by - from, fma(score, by, Vec::zero() - from));
    });
  }
  for (int v = 0; v < NV; ++v) {
    if constexpr (kSums == Sums::kChunkMax) total[v] = total[v] * factor[v];
    const Vec alpha = Vec::load(state.alpha + v * kL);
    fma(Vec::load(state.sum + v * kL), alpha, total[v]).store(state.sum + v * kL);
    fma(Vec::load(state.exact_sum + v * kL), alpha, total[v]).store(state.exact_sum + v * kL);
  }
  return changed;
}

}  // namespace
}  // namespace sparsed::cpu
