// Multiply-add of the vector tiles in float32. Needs Vec.
#pragma once

namespace sparsed {
namespace {

struct Mul {
  using Elem = float;  // what one lane multiplies in one step
  using Prob = float;  // element of packed Q, K, V and of the probabilities
  using Operand = Vec;
  static constexpr int kDepth = 1;

  static Operand load(const Elem* p) { return Vec::load(p); }
  static Operand broadcast(const Elem* p) { return Vec::set(*p); }
  static Vec multiply_add(Operand a, Operand b, Vec c) { return fma(a, b, c); }
  static void store_pair(Prob* p, int row, Vec first, Vec second) {
    first.store(p);
    second.store(p + row);
  }
};

}  // namespace
}  // namespace sparsed
