// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/pack.h"

#ifndef __CUDACC__
// Two Packs side by side. Where each operation waits for the one before, as in a chain of square
// roots and divisions, the second one's fill the time that the first one's wait.
namespace koopfast {

struct PackPair {
  Pack low{}, high{};
};

struct MaskPair {
  PackMask low, high;
};

#define KF_PAIRWISE(Result, op)                                                                   \
  KF_INLINE Result operator op(const PackPair& a, const PackPair& b) {                            \
    return {a.low op b.low, a.high op b.high};                                                    \
  }                                                                                               \
  KF_INLINE Result operator op(const PackPair& a, double b) { return {a.low op b, a.high op b}; } \
  KF_INLINE Result operator op(double a, const PackPair& b) { return {a op b.low, a op b.high}; }
KF_PAIRWISE(PackPair, +)
KF_PAIRWISE(PackPair, -)
KF_PAIRWISE(PackPair, *)
KF_PAIRWISE(PackPair, /)
KF_PAIRWISE(MaskPair, <)
KF_PAIRWISE(MaskPair, >)
KF_PAIRWISE(MaskPair, <=)
KF_PAIRWISE(MaskPair, ==)
#undef KF_PAIRWISE

KF_INLINE PackPair operator-(const PackPair& a) { return {-a.low, -a.high}; }
KF_INLINE PackPair& operator+=(PackPair& a, const PackPair& b) { return a = a + b; }
KF_INLINE PackPair& operator+=(PackPair& a, double b) { return a = a + b; }
KF_INLINE PackPair& operator-=(PackPair& a, const PackPair& b) { return a = a - b; }
KF_INLINE PackPair& operator*=(PackPair& a, const PackPair& b) { return a = a * b; }
KF_INLINE MaskPair operator|(const MaskPair& a, const MaskPair& b) {
  return {a.low | b.low, a.high | b.high};
}
KF_INLINE MaskPair operator&(const MaskPair& a, const MaskPair& b) {
  return {a.low & b.low, a.high & b.high};
}
KF_INLINE MaskPair operator!(const MaskPair& a) { return {!a.low, !a.high}; }

KF_INLINE PackPair square_root(const PackPair& x) {
  return {square_root(x.low), square_root(x.high)};
}
KF_INLINE PackPair reciprocal_root(const PackPair& x) {
  return {reciprocal_root(x.low), reciprocal_root(x.high)};
}
KF_INLINE PackPair magnitude(const PackPair& x) { return {magnitude(x.low), magnitude(x.high)}; }
KF_INLINE PackPair choose(const MaskPair& mask, const PackPair& a, const PackPair& b) {
  return {choose(mask.low, a.low, b.low), choose(mask.high, a.high, b.high)};
}
KF_INLINE bool any(const MaskPair& mask) { return any(mask.low | mask.high); }
KF_INLINE double largest_lane(const PackPair& x) {
  const double low = largest_lane(x.low), high = largest_lane(x.high);
  return low > high ? low : high;
}

}  // namespace koopfast
#endif
