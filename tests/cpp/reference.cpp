#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/float16.h"
#include "core/selection.h"
#include "support/error.h"

namespace sparsed::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One head's rows, widened.
struct Rows {
  std::vector<double> values;  // [tokens, D]
  int64_t head_dim = 0;

  Rows(const TensorView& view, int64_t b, int64_t h) : head_dim(view.shape[3]) {
    for (int64_t i = 0; i < view.shape[2]; ++i) {
      for (int64_t d = 0; d < head_dim; ++d) values.push_back(load_float(view.row(b, h, i), view.dtype, d));
    }
  }
  const double* row(int64_t i) const { return values.data() + i * head_dim; }
};

int64_t kv_head(const AttentionParams& params, int64_t h) { return h / (params.heads() / params.kv_heads()); }

bool is_live(const AttentionParams& params, int64_t b, int64_t j) {
  return !params.key_mask || params.key_mask[b * params.kv_len() + j];
}

// Which keys query i sees: [S], 1 = it is live, and in a selected block where there is a pattern.
std::vector<uint8_t> visible_keys(const AttentionParams& params, const BlockPattern* pattern, int64_t b, int64_t h,
                                  int64_t i) {
  std::vector<uint8_t> visible(static_cast<size_t>(params.kv_len()));
  for (int64_t j = 0; j < params.kv_len(); ++j) {
    bool selected = true;
    if (pattern) {
      const PatternGeometry& geometry = pattern->geometry();
      const int64_t row = (b * params.heads() + h) * geometry.q_blocks() + i / geometry.block.q;
      selected = pattern->test(row, j / geometry.block.kv);
    }
    visible[static_cast<size_t>(j)] = selected && is_live(params, b, j);
  }
  return visible;
}

struct SoftmaxRow {
  std::vector<double> p;  // [S], 0 where a key is not visible
  double lse = -kInfinity;
};

SoftmaxRow softmax_row(const double* q, const Rows& k, double scale, const std::vector<uint8_t>& visible) {
  SoftmaxRow row;
  row.p.assign(visible.size(), 0.0);
  double maximum = -kInfinity;
  bool any = false;
  for (size_t j = 0; j < visible.size(); ++j) {
    if (!visible[j]) continue;
    const double* key = k.row(static_cast<int64_t>(j));
    row.p[j] = std::inner_product(q, q + k.head_dim, key, 0.0) * scale;
    maximum = std::max(maximum, row.p[j]);
    any = true;
  }
  if (!any) return row;
  double sum = 0.0;
  for (size_t j = 0; j < visible.size(); ++j) {
    if (visible[j]) sum += row.p[j] = std::exp(row.p[j] - maximum);
  }
  for (double& p : row.p) p /= sum;
  row.lse = maximum + std::log(sum);
  return row;
}

// First generation block, read off its definition.
int64_t first_generation(int64_t kv_len, int64_t prompt_length, int64_t block_size) {
  const int64_t blocks = (kv_len + block_size - 1) / block_size;
  int64_t i = 0;
  while (i < blocks - 1 && kv_len - i * block_size > kv_len - prompt_length) ++i;
  return i;
}

// k largest of the live blocks in [begin, end), the lower index first among equals.
std::vector<int64_t> top_blocks(const double* scores, const uint8_t* live, int64_t begin, int64_t end, double rho) {
  std::vector<int64_t> blocks;
  for (int64_t block = begin; block < end; ++block) {
    if (live[block]) blocks.push_back(block);
  }
  const auto before = [&](int64_t a, int64_t b) {
    if (std::isnan(scores[a]) || std::isnan(scores[b])) return !std::isnan(scores[a]) && std::isnan(scores[b]);
    return scores[a] > scores[b];
  };
  std::stable_sort(blocks.begin(), blocks.end(), before);
  const int64_t n = static_cast<int64_t>(blocks.size());
  const int64_t k = std::min(n, std::max(int64_t{1}, static_cast<int64_t>(static_cast<double>(n) * rho) + 1));
  blocks.resize(static_cast<size_t>(k));
  return blocks;
}

}  // namespace

void attention(const AttentionParams& params, const BlockPattern* pattern, double* out, double* lse) {
  const int64_t head_dim = params.head_dim();
  std::fill_n(out, params.batch() * params.heads() * params.q_len() * head_dim, 0.0);
  for (int64_t b = 0; b < params.batch(); ++b) {
    for (int64_t h = 0; h < params.heads(); ++h) {
      const Rows q(params.q, b, h), k(params.k, b, kv_head(params, h)), v(params.v, b, kv_head(params, h));
      for (int64_t i = 0; i < params.q_len(); ++i) {
        const int64_t row = (b * params.heads() + h) * params.q_len() + i;
        const std::vector<uint8_t> visible = visible_keys(params, pattern, b, h, i);
        const SoftmaxRow softmax = softmax_row(q.row(i), k, params.scale, visible);
        if (lse) lse[row] = softmax.lse;
        for (size_t j = 0; j < visible.size(); ++j) {
          if (!visible[j]) continue;  // a hidden NaN stays hidden
          const double* value = v.row(static_cast<int64_t>(j));
          for (int64_t d = 0; d < head_dim; ++d) out[row * head_dim + d] += softmax.p[j] * value[d];
        }
      }
    }
  }
}

std::vector<double> block_scores(const AttentionParams& params, int block_size, float scale, int64_t first_key) {
  const int64_t q_blocks = num_blocks(params.q_len(), block_size);
  const int64_t kv_blocks = num_blocks(params.kv_len(), block_size);
  std::vector<double> scores(static_cast<size_t>(params.batch() * params.heads() * q_blocks * kv_blocks));
  for (int64_t b = 0; b < params.batch(); ++b) {
    std::vector<uint8_t> visible(static_cast<size_t>(params.kv_len()));
    for (int64_t j = first_key; j < params.kv_len(); ++j) visible[static_cast<size_t>(j)] = is_live(params, b, j);
    for (int64_t h = 0; h < params.heads(); ++h) {
      const Rows q(params.q, b, h), k(params.k, b, kv_head(params, h));
      for (int64_t i = 0; i < params.q_len(); ++i) {
        const SoftmaxRow softmax = softmax_row(q.row(i), k, scale, visible);
        const int64_t row = (b * params.heads() + h) * q_blocks + i / block_size;
        for (int64_t j = 0; j < params.kv_len(); ++j) {
          scores[static_cast<size_t>(row * kv_blocks + j / block_size)] += softmax.p[static_cast<size_t>(j)];
        }
      }
    }
  }
  return scores;
}

std::vector<uint8_t> select_row(const SelectParams& select, int64_t kv_len, const double* scores,
                                const double* generation, const uint8_t* live) {
  const int64_t b = select.block_size;
  const int64_t blocks = (kv_len + b - 1) / b;
  std::vector<uint8_t> kept(static_cast<size_t>(blocks));
  const auto keep = [&](const std::vector<int64_t>& chosen, int64_t first, int64_t end) {
    for (const int64_t block : chosen) {
      if (block >= first && block < end) kept[static_cast<size_t>(block)] = 1;
    }
  };
  if (!select.isolate) {
    keep(top_blocks(scores, live, 0, blocks, select.rho), 0, blocks);
    return kept;
  }
  const bool only_prompt = select.rule == SelectionRule::kPaper && select.prompt_length == kv_len;
  const int64_t last = only_prompt ? blocks : first_generation(kv_len, select.prompt_length, b);
  if (select.rule == SelectionRule::kPaper) {
    keep(top_blocks(scores, live, 0, last, select.rho), 0, last);
    keep(top_blocks(scores, live, last, blocks, select.rho), last, blocks);
  } else {
    keep(top_blocks(scores, live, 0, blocks, select.rho), 0, last);
    keep(top_blocks(generation, live, last, blocks, select.rho), last, blocks);
  }
  return kept;
}

BlockPattern select(const AttentionParams& params, const SelectParams& select) {
  check(params.q_len() == params.kv_len(), "select: k has length ", params.kv_len(), ", expected ", params.q_len(),
        " (as q)");
  check_select(select, params.kv_len(), "select");
  PatternBuilder pattern(
      {params.batch(), params.heads(), select.block_size, params.q_len(), params.kv_len(), select.prompt_length},
      "select");
  const int64_t b = select.block_size, blocks = pattern.geometry().kv_blocks();
  const int64_t last = first_generation(params.kv_len(), select.prompt_length, b);
  const std::vector<double> scores = block_scores(params, select.block_size, select.scale, 0);
  const bool apart = select.rule == SelectionRule::kReference && select.isolate;
  const std::vector<double> generation =
      apart ? block_scores(params, select.block_size, select.scale, last * b) : std::vector<double>(scores.size());
  for (int64_t row = 0; row < pattern.rows(); ++row) {
    const int64_t end = std::min((row % blocks + 1) * b, params.q_len());  // of the row's queries
    if (select.dense_generation && end > select.prompt_length) {
      for (int64_t block = 0; block < blocks; ++block) pattern.set(row, block);
      continue;
    }
    const int64_t batch = row / (params.heads() * pattern.geometry().q_blocks());
    std::vector<uint8_t> live(static_cast<size_t>(blocks));
    for (int64_t j = 0; j < params.kv_len(); ++j) {
      if (is_live(params, batch, j)) live[static_cast<size_t>(j / b)] = 1;
    }
    const std::vector<uint8_t> kept = select_row(select, params.kv_len(), &scores[static_cast<size_t>(row * blocks)],
                                                 &generation[static_cast<size_t>(row * blocks)], live.data());
    for (int64_t block = 0; block < blocks; ++block) {
      if (kept[static_cast<size_t>(block)]) pattern.set(row, block);
    }
  }
  return std::move(pattern).build();
}

}  // namespace sparsed::reference
