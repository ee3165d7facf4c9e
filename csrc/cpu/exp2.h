// The polynomials of exp2, for vectors of any width; included by vec_*.h.
#pragma once

namespace sparsed {
namespace {

// 2^f for |f| <= 1/2, relative error 2e-9 before rounding.
template <class Vec>
inline Vec exp2_fraction(Vec f) {
  Vec p = Vec::set(0x1.41fbbcp-13f);
  p = fma(p, f, Vec::set(0x1.5f3e52p-10f));
  p = fma(p, f, Vec::set(0x1.3b2d4cp-7f));
  p = fma(p, f, Vec::set(0x1.c6aee8p-5f));
  p = fma(p, f, Vec::set(0x1.ebfbdcp-3f));
  p = fma(p, f, Vec::set(0x1.62e430p-1f));
  return fma(p, f, Vec::set(1.f));
}

// The same for results that are rounded to bfloat16: relative error 3e-6, exact at f = 0.
template <class Vec>
inline Vec exp2_fraction_for_bf16(Vec f) {
  Vec p = Vec::set(0x1.3a02ccp-7f);
  p = fma(p, f, Vec::set(0x1.c9fc46p-5f));
  p = fma(p, f, Vec::set(0x1.ec0378p-3f));
  p = fma(p, f, Vec::set(0x1.62e12cp-1f));
  return fma(p, f, Vec::set(1.f));
}

}  // namespace
}  // namespace sparsed
