// The polynomials of exp2, for vectors of any width: the steps of vec_*.h.
#pragma once

namespace sparsed::cpu {
namespace {

// The polynomial whose coefficients these are, the highest first.
template <class Vec, class... Lower>
inline Vec polynomial(Vec f, float highest, Lower... lower) {
  Vec p = Vec::set(highest);
  ((p = fma(p, f, Vec::set(lower))), ...);
  return p;
}

// 2^f for |f| <= 1/2, relative error 2e-9 before rounding.
template <class Vec>
inline Vec exp2_fraction(Vec f) {
  return polynomial(f, 0x1.41fbbcp-13f, 0x1.5f3e52p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f, 0x1.62e430p-1f,
                    1.f);
}

// The same for results that are rounded to bfloat16: relative error 3e-6, exact at f = 0.
template <class Vec>
inline Vec exp2_fraction_for_bf16(Vec f) {
  return polynomial(f, 0x1.3a02ccp-7f, 0x1.c9fc46p-5f, 0x1.ec0378p-3f, 0x1.62e12cp-1f, 1.f);
}

}  // namespace
}  // namespace sparsed::cpu
