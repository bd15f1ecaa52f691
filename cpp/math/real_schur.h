// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>

#include "math/pack.h"

// The real Schur form of general real matrices: Householder reduction to Hessenberg form, Francis's
// double-shift QR steps (Golub & Van Loan 2013, sections 7.4 and 7.5). Packed matrices step
// together: where a lane has split further, or is done, its reflections are the identity.
namespace koopfast {

constexpr int kMostFrancisSteps = 40;  // for one or two eigenvalues; four or so are usual

// I - tau v v^T that takes (p, q, r) to (end, 0, 0): v = (first, q, r).
template <typename V>
struct Reflection {
  V first, tau, end;
};

template <typename V>
KF_INLINE Reflection<V> reflection(const V& p, const V& below) {
  // Squares this small would not have a finite inverse.
  const auto nothing = !(below > DBL_MIN / DBL_EPSILON);
  const V norm = square_root(p * p + below);
  const V end = choose(p > 0.0, -norm, norm);
  const V first = p - end;
  const V safe = choose(nothing, V{} + 1.0, below + first * first);
  return {first, choose(nothing, V{}, 2.0 / safe), choose(nothing, p, end)};
}

// A = Z H Z^T: H, Hessenberg, in the place of `a` (n, n), and Z into `z`. `v` holds 2 n values.
template <typename V>
KF_INLINE void hessenberg(V* a, int n, V* z, V* v) {
  for (int i = 0; i < n * n; ++i) z[i] = V{};
  for (int i = 0; i < n; ++i) z[i * n + i] += 1.0;
  V* sums = v + n;
  for (int j = 0; j + 2 < n; ++j) {
    V below{};
    for (int i = j + 2; i < n; ++i) below += a[i * n + j] * a[i * n + j];
    const Reflection<V> own = reflection(a[(j + 1) * n + j], below);
    v[j + 1] = own.first;
    a[(j + 1) * n + j] = own.end;
    for (int i = j + 2; i < n; ++i) {
      v[i] = a[i * n + j];
      a[i * n + j] = V{};
    }
    for (int c = j + 1; c < n; ++c) sums[c] = V{};
    for (int i = j + 1; i < n; ++i)
      for (int c = j + 1; c < n; ++c) sums[c] += v[i] * a[i * n + c];
    for (int i = j + 1; i < n; ++i) {
      const V share = own.tau * v[i];
      for (int c = j + 1; c < n; ++c) a[i * n + c] -= share * sums[c];
    }
    for (int r = 0; r < 2 * n; ++r) {
      V* row = r < n ? a + r * n : z + (r - n) * n;
      V sum{};
      for (int c = j + 1; c < n; ++c) sum += row[c] * v[c];
      sum *= own.tau;
      for (int c = j + 1; c < n; ++c) row[c] -= sum * v[c];
    }
  }
}

// One double-shift step of rows and columns low .. top of every lane with top > low + 1; shifts of
// sum `trace` and product `determinant`.
template <typename V>
KF_INLINE void francis_step(V* h, V* z, int n, const V& low, const V& top, const V& trace,
                            const V& determinant) {
  const auto active = top > low + 1.0;
  const int first = -static_cast<int>(largest_lane(choose(active, -low, V{} - n)));
  const int last = static_cast<int>(largest_lane(choose(active, top, V{})));
  for (int k = first; k < last; ++k) {
    V *row0 = h + k * n, *row1 = row0 + n, *row2 = row1 + n;
    const bool third = k + 2 < n;
    const double here = k;
    const auto starts = active & (low == here), goes_on = active & (low < here) & (top > here);
    const V corner = row0[k], under = row1[k];
    V p = corner * corner + row0[k + 1] * under - trace * corner + determinant;
    V q = under * (corner + row1[k + 1] - trace);
    V r = third ? under * row2[k + 1] : V{};
    if (k > 0) {
      p = choose(starts, p, row0[k - 1]);
      q = choose(starts, q, row1[k - 1]);
      r = choose(starts, r, third ? row2[k - 1] : V{});
    }
    const auto within = starts | goes_on;
    q = choose(within, q, V{});
    r = choose(within & (top > here + 1.0), r, V{});
    const Reflection<V> own = reflection(p, q * q + r * r);
    const V t0 = own.tau * own.first, t1 = own.tau * q, t2 = own.tau * r;
    if (k > 0) {
      row0[k - 1] = choose(goes_on, own.end, row0[k - 1]);
      row1[k - 1] = choose(goes_on, V{}, row1[k - 1]);
      if (third) row2[k - 1] = choose(goes_on, V{}, row2[k - 1]);
    }
    if (third) {
      for (int c = k; c < n; ++c) {
        const V sum = own.first * row0[c] + q * row1[c] + r * row2[c];
        row0[c] -= t0 * sum;
        row1[c] -= t1 * sum;
        row2[c] -= t2 * sum;
      }
      const int rows = (k + 3 < n ? k + 4 : n);
      for (int i = 0; i < rows + n; ++i) {
        V* own_row = (i < rows ? h + i * n : z + (i - rows) * n) + k;
        const V sum = own.first * own_row[0] + q * own_row[1] + r * own_row[2];
        own_row[0] -= t0 * sum;
        own_row[1] -= t1 * sum;
        own_row[2] -= t2 * sum;
      }
      continue;
    }
    for (int c = k; c < n; ++c) {
      const V sum = own.first * row0[c] + q * row1[c];
      row0[c] -= t0 * sum;
      row1[c] -= t1 * sum;
    }
    for (int i = 0; i < 2 * n; ++i) {
      V* own_row = (i < n ? h + i * n : z + (i - n) * n) + k;
      const V sum = own.first * own_row[0] + q * own_row[1];
      own_row[0] -= t0 * sum;
      own_row[1] -= t1 * sum;
    }
  }
}

// H, Hessenberg, to real Schur form in place, Z alike: blocks of one or two on the diagonal, below
// which there are zeros. True in the lanes that have converged.
template <typename V>
KF_INLINE Mask<V> real_schur(V* h, V* z, int n) {
  V top = V{} + (n - 1.0), steps{};
  Mask<V> failed = V{} > 0.0;
  for (;;) {
    V low{};
    for (auto deflated = top > 0.0; any(deflated);) {
      low = V{};
      const int last = static_cast<int>(largest_lane(top));
      for (int i = 1; i <= last; ++i) {
        V& beside = h[i * n + i - 1];
        const V scale = magnitude(h[(i - 1) * n + i - 1]) + magnitude(h[i * n + i]);
        const double here = i;
        const auto splits = (magnitude(beside) <= DBL_EPSILON * scale) & (top > here - 1.0);
        beside = choose(splits, V{}, beside);
        low = choose(splits, V{} + here, low);
      }
      const auto open = top > 0.0;
      const auto one = open & (low == top), two = open & (low + 1.0 == top);
      deflated = one | two;
      top -= choose(one, V{} + 1.0, choose(two, V{} + 2.0, V{}));
      steps = choose(deflated, V{}, steps);
    }
    const auto open = top > 0.0;
    if (!any(open)) return !failed;
    steps = choose(open, steps + 1.0, steps);
    const auto lost = open & (steps > kMostFrancisSteps + 0.0);
    failed = failed | lost;
    top = choose(lost, V{}, top);
    V a{}, b{}, c{}, d{}, above{};
    const int last = static_cast<int>(largest_lane(top));
    for (int i = 2; i <= last; ++i) {
      const V *row = h + i * n, *before = row - n;
      const auto own = top == static_cast<double>(i);
      a = choose(own, before[i - 1], a);
      b = choose(own, before[i], b);
      c = choose(own, row[i - 1], c);
      d = choose(own, row[i], d);
      above = choose(own, before[i - 2], above);
    }
    // The eigenvalues of the last two rows; now and then others, where that leads nowhere.
    const V other = magnitude(c) + magnitude(above);
    const auto odd = (steps == 10.0) | (steps == 20.0) | (steps == 30.0);
    const V trace = choose(odd, 1.5 * other, a + d);
    const V determinant = choose(odd, other * other, a * d - b * c);
    francis_step(h, z, n, choose(top > 0.0, low, V{}), top, trace, determinant);
  }
}

}  // namespace koopfast
