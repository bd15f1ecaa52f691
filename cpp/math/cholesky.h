// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/pack.h"

// Inverse of a symmetric positive definite G (n, n) by G = L L^T, with a bound on its condition.
namespace koopfast {

// L into the lower triangle of `a`, which holds that of G. A pivot that is not positive leaves NaN
// (its square root) in all that follows.
template <typename V>
KF_INLINE void cholesky(V* a, int n) {
  for (int j = 0; j < n; ++j) {
    const V root = square_root(a[j * n + j]);
    const V inverse = 1.0 / root;
    a[j * n + j] = root;
    for (int i = j + 1; i < n; ++i) a[i * n + j] *= inverse;
    for (int i = j + 1; i < n; ++i) {
      const V own = a[i * n + j];
      for (int l = j + 1; l <= i; ++l) a[i * n + l] -= own * a[l * n + j];
    }
  }
}

// L^-1 into the lower triangle of `out`, zeros above. Row i: (e_i - sum_{l<i} L_il row_l) / L_ii.
template <typename V>
KF_INLINE void invert_lower(const V* lower, int n, V* out) {
  for (int i = 0; i < n; ++i) {
    const V inverse = 1.0 / lower[i * n + i];
    for (int j = 0; j < n; ++j) out[i * n + j] = V{};
    for (int l = 0; l < i; ++l) {
      const V own = lower[i * n + l] * inverse;
      for (int j = 0; j <= l; ++j) out[i * n + j] -= own * out[l * n + j];
    }
    out[i * n + i] = inverse;
  }
}

// G^-1 = L^-T L^-1 into `out`. `g` holds G, its lower triangle is enough, and is overwritten.
// Returns tr(G) |L^-1|_F^2 = tr(G) tr(G^-1), which bounds the condition number of G from above;
// NaN where G is not positive definite. `work` holds n*n values.
template <typename V>
KF_INLINE V invert_definite(V* g, int n, V* out, V* work) {
  V trace{}, squares{};
  for (int i = 0; i < n; ++i) trace += g[i * n + i];
  cholesky(g, n);
  invert_lower(g, n, work);
  for (int i = 0; i < n * n; ++i) squares += work[i] * work[i];
  for (int i = 0; i < n * n; ++i) out[i] = V{};
  for (int l = 0; l < n; ++l)
    for (int i = 0; i <= l; ++i) {
      const V own = work[l * n + i];
      for (int j = 0; j <= i; ++j) out[i * n + j] += own * work[l * n + j];
    }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) out[j * n + i] = out[i * n + j];
  return trace * squares;
}

}  // namespace koopfast
