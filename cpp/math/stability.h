// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/small_matrix.h"

namespace koopfast {

// Whether no eigenvalue of A (k, k) lies outside the unit circle, judged by the Frobenius norms of
// A, A^2, A^4, ... A^256: a fraction of what an eigenbasis costs. False where that does not tell.
// `work` holds 2 k*k values.
template <typename V>
KF_INLINE Mask<V> certainly_stable(const V* a, int k, V* work) {
  constexpr double kHopeless = 1e3;
  V *power = work, *next = work + k * k;
  for (int i = 0; i < k * k; ++i) power[i] = a[i];
  Mask<V> stable = V{} > 0.0;
  for (int doubling = 0;; ++doubling) {
    V squares{};
    for (int i = 0; i < k * k; ++i) squares += power[i] * power[i];
    stable = stable | (squares <= 1.0);
    if (doubling == 8 || !any((squares < kHopeless * kHopeless) & !stable)) return stable;
    multiply(power, power, k, k, k, next);
    V* const last = power;
    power = next;
    next = last;
  }
}

}  // namespace koopfast
