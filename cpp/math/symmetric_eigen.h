// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>

#include "math/pack.h"
#include "math/small_matrix.h"

// Eigenvalues and eigenvectors of a symmetric matrix: Householder tridiagonalisation, then implicit
// QL with Wilkinson's shift (Golub & Van Loan 2013, sections 8.3.1 and 8.3.5). Packed blocks
// iterate together until the slowest has converged; those that are done, or whose matrix has split
// further up, are turned by rotations that are the identity.
namespace koopfast {

constexpr int kMostIterations = 60;  // for one eigenvalue; two are usual

// T = Q A Q^T, tridiagonal: `diagonal` (n), `beside` (n) with beside[i] next to i and i+1, and Q
// into `q` (n, n) by rows. `a` (n, n), both triangles, is overwritten; `work` holds n values.
template <typename V>
KF_INLINE void tridiagonalise(V* a, int n, V* diagonal, V* beside, V* q, V* work) {
  for (int i = 0; i < n * n; ++i) q[i] = V{};
  for (int i = 0; i < n; ++i) q[i * n + i] += 1.0;
  for (int j = 0; j + 2 < n; ++j) {
    // Reflector I - tau v v^T that takes column j below the diagonal to its first entry. v lies in
    // row j right of the diagonal, where A's symmetric entries are.
    V* v = a + j * n;
    V below{};
    for (int i = j + 2; i < n; ++i) below += v[i] * v[i];
    const V head = v[j + 1];
    const V norm = square_root(head * head + below);
    const V end = choose(head > 0.0, -norm, norm);
    // Squares this small would not have a finite inverse. Entries are at most 1.
    const auto nothing = !(below > DBL_MIN / DBL_EPSILON);
    const V first = choose(nothing, V{} + 1.0, head - end);
    // tau v v^T = 2 v v^T / |v|^2, and |v|^2 = below + first^2.
    const V tau = choose(nothing, V{}, 2.0 / (below + first * first));
    beside[j] = choose(nothing, head, end);
    v[j + 1] = first;
    // A22 -= v w^T + w v^T with p = tau A22 v, w = p - (tau/2) (p^T v) v.
    const int behind = n - j - 1;
    multiply_vector(a + (j + 1) * (n + 1), n, v + j + 1, behind, behind, work + j + 1);
    V product{};
    for (int i = j + 1; i < n; ++i) {
      work[i] *= tau;
      product += work[i] * v[i];
    }
    const V half = 0.5 * tau * product;
    for (int i = j + 1; i < n; ++i) work[i] -= half * v[i];
    for (int i = j + 1; i < n; ++i) {
      V* row = a + i * n;
      const V vi = v[i], wi = work[i];
      for (int l = j + 1; l < n; ++l) row[l] -= vi * work[l] + wi * v[l];
    }
    diagonal[j] = v[j];
    v[j] = tau;  // its place is free now: kept for the product below
  }
  for (int j = n > 2 ? n - 2 : 0; j < n; ++j) {
    diagonal[j] = a[j * n + j];
    beside[j] = j + 1 < n ? a[j * n + j + 1] : V{};
  }
  // Q = ... H_1 H_0, the last reflector first: each turns only rows and columns behind its own.
  for (int j = n - 3; j >= 0; --j) {
    const V* v = a + j * n;
    const int behind = n - j - 1;
    multiply_vector(q + (j + 1) * (n + 1), n, v + j + 1, behind, behind, work + j + 1);
    for (int l = j + 1; l < n; ++l) {
      V* row = q + l * n;
      const V own = v[j] * work[l];
      for (int i = j + 1; i < n; ++i) row[i] -= own * v[i];
    }
  }
}

// Eigenvalues of the tridiagonal matrix into `diagonal`, in no order; the rows of `vectors` are
// turned alike. True in the lanes that have converged.
template <typename V>
KF_INLINE Mask<V> implicit_ql(V* diagonal, V* beside, V* vectors, int n) {
  Mask<V> failed = V{} > 0.0;
  for (int l = 0; l < n; ++l) {
    for (int iteration = 0;; ++iteration) {
      // The matrix splits at the first m >= l whose neighbour is negligible.
      V split = V{} + (n - 1.0);
      for (int m = n - 2; m >= l; --m) {
        const V scale = magnitude(diagonal[m]) + magnitude(diagonal[m + 1]);
        split = choose(magnitude(beside[m]) <= DBL_EPSILON * scale, V{} + static_cast<double>(m),
                       split);
      }
      // Lanes that are done have split == l: no comparison below holds for them.
      const int top = static_cast<int>(largest_lane(split));
      if (top == l) break;
      if (iteration == kMostIterations) {
        failed = failed | (split > static_cast<double>(l));
        break;
      }
      // Wilkinson's shift.
      const V safe = choose(split > static_cast<double>(l), beside[l], V{} + 1.0);
      V g = (diagonal[l + 1] - diagonal[l]) / (2.0 * safe);
      const V root = square_root(g * g + 1.0);
      const V shift = safe / (g + choose(g < 0.0, -root, root));
      V end = diagonal[l];
      for (int m = l + 1; m <= top; ++m)
        end = choose(split == static_cast<double>(m), diagonal[m], end);
      g = end - diagonal[l] + shift;
      V s = V{} + 1.0, c = V{} + 1.0, p{};
      for (int i = top - 1; i >= l; --i) {
        // Rotations start at the lane's own split.
        const double here = i, above = i + 1;
        const V f = s * beside[i], b = c * beside[i];
        const V squares = f * f + g * g;
        // f = g = 0: any rotation will do, and the identity goes on without a division by zero.
        const V length = square_root(squares);
        const V inverse = 1.0 / choose(squares > 0.0, length, V{} + 1.0);
        const V new_s = f * inverse, new_c = choose(squares > 0.0, g * inverse, V{} + 1.0);
        const V high = diagonal[i + 1] - p;
        const V turn = (diagonal[i] - high) * new_s + 2.0 * new_c * b;
        const V new_p = new_s * turn;
        beside[i + 1] = choose(split > above, length, beside[i + 1]);
        diagonal[i + 1] = choose(split > here, high + new_p, diagonal[i + 1]);
        s = choose(split > here, new_s, s);
        c = choose(split > here, new_c, c);
        p = choose(split > here, new_p, p);
        g = choose(split > here, new_c * turn - b, g);
        const V vs = choose(split > here, new_s, V{}), vc = choose(split > here, new_c, V{} + 1.0);
        V *lower = vectors + i * n, *upper = lower + n;
        for (int k = 0; k < n; ++k) {
          const V old = upper[k];
          upper[k] = vs * lower[k] + vc * old;
          lower[k] = vc * lower[k] - vs * old;
        }
      }
      const double first = l;
      diagonal[l] = choose(split > first, diagonal[l] - p, diagonal[l]);
      beside[l] = choose(split > first, g, beside[l]);
      for (int m = l + 1; m <= top; ++m)
        beside[m] = choose(split == static_cast<double>(m), V{}, beside[m]);
    }
  }
  return !failed;
}

// A = W^T diag(values) W of a symmetric `a` (n, n), both triangles, which is overwritten. Row i of
// `vectors` belongs to values[i]; there is no order. True in the lanes that have converged. `work`
// holds 2 n values. The largest entry must be about 1.
template <typename V>
KF_INLINE Mask<V> symmetric_eigen(V* a, int n, V* values, V* vectors, V* work) {
  V* beside = work + n;
  tridiagonalise(a, n, values, beside, vectors, work);
  return implicit_ql(values, beside, vectors, n);
}

}  // namespace koopfast
