// Multiply-add of the vector kernels in float32, for any vector.
#pragma once

namespace sparsed::cpu {
namespace {

template <class V>
struct MulFloat {
  using Vec = V;
  using Elem = float;  // what one lane multiplies in one step
  using Prob = float;  // element of packed Q, K, V and of the probabilities
  using Pairs = void;  // no bfloat16 probabilities
  using Operand = Vec;
  static constexpr int kDepth = 1;

  static Operand load(const Elem* p) { return Vec::load(p); }
  static Operand broadcast(const Elem* p) { return Vec::set(*p); }
  static Vec multiply_add(Operand a, Operand b, Vec c) { return fma(a, b, c); }
  static Vec exp2_probability(Vec x) { return exp2(x); }
  // n <= kLanes elements of a row of any dtype.
  template <class T>
  static Vec load_elems(const T* row, int n) {
    return Vec::load_n(row, n);
  }
  // kRows columns of one key, as a panel of packed V holds them.
  template <int kRows, class T>
  static void pack_column(const T* const (&keys)[kDepth], Prob* out) {
    static_assert(kRows <= Vec::kLanes);
    Vec::load_n(keys[0], kRows).store_n(out, kRows);
  }
  static void store_pair(Prob* p, int row, Vec first, Vec second) {
    first.store(p);
    second.store(p + row);
  }
};

}  // namespace
}  // namespace sparsed::cpu
