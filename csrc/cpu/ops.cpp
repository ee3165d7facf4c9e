#include "cpu/ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/ops_checks.h"
#include "cpu/parallel.h"

namespace sparsed::cpu {
namespace {

// body(row) for all rows, several to a work item so that an item is worth handing out.
template <class Body>
void for_rows(const RowsView& view, const Body& body) {
  constexpr int64_t kItemElements = 16384;
  if (view.cols == 0) return;
  const int64_t rows = std::max<int64_t>(1, kItemElements / view.cols);
  parallel_for(ceil_div(view.rows, rows), [&](int64_t item) {
    for (int64_t row = item * rows; row < std::min(view.rows, (item + 1) * rows); ++row) body(row);
  });
}

}  // namespace

void rms_norm(const OpsKernels& kernels, const RowsView& x, const float* weight, float eps, const RowsView& out) {
  const Checker check("rms_norm");
  check_dtype(check, "x", x);
  check_shape(check, "out", out, x.rows, x.cols, "x");
  for_rows(x,
           [&](int64_t row) { kernels.rms_norm(x.row(row), x.dtype, weight, eps, x.cols, out.row(row), out.dtype); });
}

void rotary(const OpsKernels& kernels, const RowsView& x, int64_t head_dim, const float* cos, const float* sin) {
  const Checker check("rotary_");
  check_dtype(check, "x", x);
  check(head_dim > 0 && head_dim % 2 == 0, "head_dim is ", head_dim, ", expected an even number above 0");
  check(x.cols % head_dim == 0, "x has shape ", shape_of(x), ", expected a multiple of head_dim ", head_dim,
        " columns");
  for_rows(x, [&](int64_t row) {
    const int64_t angles = row * (head_dim / 2);
    kernels.rotary(x.row(row), x.dtype, x.cols / head_dim, head_dim, cos + angles, sin + angles);
  });
}

void silu_gate(const OpsKernels& kernels, const RowsView& gate, const RowsView& up) {
  const Checker check("silu_gate_");
  check_dtype(check, "gate", gate);
  check_shape(check, "up", up, gate.rows, gate.cols, "gate");
  if (up.dtype != gate.dtype) {
    check.fail(ErrorKind::kType, "up has dtype ", dtype_name(up.dtype), ", expected ", dtype_name(gate.dtype),
               " (from gate)");
  }
  for_rows(gate, [&](int64_t row) { kernels.silu_gate(gate.row(row), up.row(row), gate.dtype, gate.cols); });
}

// --- token_confidence ----------------------------------------------------------------------------------------------

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A vocabulary is always cut into the same stretches: a few rows then keep all threads busy, and sums do not depend on
// how many there are.
constexpr int64_t kStretch = 4096;

// Softmax of a stretch or a row, relative to its own maximum. The maximum's own term, 1, stays out of the sum: what is
// left over by a nearly certain row is exact then.
struct Part {
  float max = -kInfinity;
  int64_t index = 0;          // of the first maximum, in the row
  float second = -kInfinity;  // the largest of the others
  double rest = 0.0;          // sum of exp(l - max) of the others
};

// body(row, stretch) for all stretches of all rows.
template <class Body>
void for_stretches(const RowsView& logits, const Body& body) {
  constexpr int64_t kItemStretches = 4;
  const int64_t stretches = ceil_div(logits.cols, kStretch), total = logits.rows * stretches;
  parallel_for(ceil_div(total, kItemStretches), [&](int64_t item) {
    for (int64_t i = item * kItemStretches; i < std::min(total, (item + 1) * kItemStretches); ++i) {
      body(i / stretches, i % stretches);
    }
  });
}

// f(first, count) of the stretch's logits without the one at `index`.
template <class F>
void for_others(int64_t stretch, int64_t cols, int64_t index, const F& f) {
  const int64_t begin = stretch * kStretch, end = std::min(cols, begin + kStretch);
  if (index < begin || index >= end) return f(begin, end - begin);
  if (index > begin) f(begin, index - begin);
  if (index + 1 < end) f(index + 1, end - index - 1);
}

Part reduce_stretch(const OpsKernels& kernels, const float* row, int64_t stretch, int64_t cols) {
  Part part;
  const int64_t begin = stretch * kStretch;
  kernels.find_max(row + begin, std::min(kStretch, cols - begin), &part.max, &part.index);
  part.index += begin;
  if (part.max == -kInfinity) return part;
  for_others(stretch, cols, part.index, [&](int64_t first, int64_t count) {
    float max;
    int64_t index;
    kernels.find_max(row + first, count, &max, &index);
    part.second = std::max(part.second, max);
    part.rest += kernels.exp_sum(row + first, count, part.max);
  });
  return part;
}

Part join(const Part* parts, int64_t count) {
  const Part* best = std::max_element(parts, parts + count, [](const Part& a, const Part& b) { return a.max < b.max; });
  Part row = *best;
  if (row.max == -kInfinity) return {};
  for (const Part* part = parts; part != parts + count; ++part) {
    if (part == best) continue;
    row.second = std::max(row.second, part->max);
    row.rest += (1.0 + part->rest) * std::exp(static_cast<double>(part->max) - row.max);
  }
  return row;
}

// The largest probability's own term p log(p + 1e-10), with log p = -log(1 + rest).
double top_entropy(const Part& row) {
  return (std::log1p(1e-10 * (1.0 + row.rest)) - std::log1p(row.rest)) / (1.0 + row.rest);
}

}  // namespace

void token_confidence(const OpsKernels& kernels, const RowsView& logits, Confidence kind, int64_t* ids,
                      float* confidence) {
  const Checker check("token_confidence");
  if (logits.dtype != DType::kFloat32) {
    check.fail(ErrorKind::kType, "logits has dtype ", dtype_name(logits.dtype), ", expected float32");
  }
  check(logits.cols > 0, "logits has shape ", shape_of(logits), ", expected at least 1 column");
  const int64_t stretches = ceil_div(logits.cols, kStretch);
  const auto row_at = [&](int64_t row) { return reinterpret_cast<const float*>(logits.row(row)); };

  check.memory(saturating_product({logits.rows, stretches, sizeof(Part) + sizeof(float)}), "the parts of the rows");
  std::vector<Part> parts(static_cast<size_t>(logits.rows * stretches));
  for_stretches(logits, [&](int64_t row, int64_t stretch) {
    parts[row * stretches + stretch] = reduce_stretch(kernels, row_at(row), stretch, logits.cols);
  });
  std::vector<Part> rows(static_cast<size_t>(logits.rows));
  for (int64_t row = 0; row < logits.rows; ++row) rows[row] = join(&parts[row * stretches], stretches);

  std::vector<float> entropies(kind == Confidence::kNegativeEntropy ? parts.size() : 0);
  if (kind == Confidence::kNegativeEntropy) {
    for_stretches(logits, [&](int64_t row, int64_t stretch) {
      const float inverse = static_cast<float>(1.0 / (1.0 + rows[row].rest));
      float& sum = entropies[row * stretches + stretch];
      for_others(stretch, logits.cols, rows[row].index, [&](int64_t first, int64_t count) {
        sum += kernels.entropy_sum(row_at(row) + first, count, rows[row].max, inverse);
      });
    });
  }
  for (int64_t row = 0; row < logits.rows; ++row) {
    const Part& part = rows[row];
    double value = 1.0 / (1.0 + part.rest);
    if (kind == Confidence::kMargin) value *= -std::expm1(static_cast<double>(part.second) - part.max);
    if (kind == Confidence::kNegativeEntropy) {
      value = top_entropy(part);
      for (int64_t i = 0; i < stretches; ++i) value += entropies[row * stretches + i];
    }
    ids[row] = part.index;
    confidence[row] = part.max == -kInfinity ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(value);
  }
}

}  // namespace sparsed::cpu
