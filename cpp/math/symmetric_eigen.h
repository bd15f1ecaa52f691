// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>

#include "math/pack.h"
#include "math/small_matrix.h"

// Eigenvalues of a symmetric matrix whose largest entry is about 1, and the
// eigenvectors of the largest ones: Householder tridiagonalisation, eigenvalues without vectors
// (the square-root-free QL algorithm of Pal, Walker and Kahan; Parlett 1998, section 8.15), then
// one sweep of explicit QL with each wanted eigenvalue as its shift, which splits that eigenvalue
// off. The rotations of the sweeps are kept, and applied to as many unit vectors as are wanted:
// what is not wanted costs nothing. Packed blocks iterate together until the slowest has
// converged; those that are done are turned by the identity.
namespace koopfast {

constexpr int kMostIterations = 60;  // for one eigenvalue; two are usual
constexpr int kMostSweeps = 4;       // for one eigenvector; one is usual, two are not rare
// Beside entries of 1, what is below this is rounding.
constexpr double kRounding = DBL_EPSILON / 16;

// a (size, size) -= v w^T + w v^T, rows of a `ld` values apart.
template <int Rows, typename V>
KF_INLINE void subtract_outer_rows(V* a, int ld, const V* v, const V* w, int row, int size) {
  V vi[Rows], wi[Rows];
  for (int r = 0; r < Rows; ++r) {
    vi[r] = v[row + r];
    wi[r] = w[row + r];
  }
  for (int l = 0; l < size; ++l) {
    const V vl = v[l], wl = w[l];
    for (int r = 0; r < Rows; ++r) a[(row + r) * ld + l] -= vi[r] * wl + wi[r] * vl;
  }
}

// T = Q A Q^T, tridiagonal: `diagonal` (n), `beside` (n) with beside[i] next to i and i+1. `a`
// (n, n), both triangles, is overwritten by the reflectors that make up Q; `work` holds n values.
template <typename V>
KF_INLINE void tridiagonalise(V* a, int n, V* diagonal, V* beside, V* work) {
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
    V* rest = a + (j + 1) * (n + 1);
    int i = 0;
    for (; i + 4 <= behind; i += 4)
      subtract_outer_rows<4>(rest, n, v + j + 1, work + j + 1, i, behind);
    for (; i < behind; ++i) subtract_outer_rows<1>(rest, n, v + j + 1, work + j + 1, i, behind);
    diagonal[j] = v[j];
    v[j] = tau;  // its place is free now
  }
  for (int j = n > 2 ? n - 2 : 0; j < n; ++j) {
    diagonal[j] = a[j * n + j];
    beside[j] = j + 1 < n ? a[j * n + j + 1] : V{};
  }
}

// Eigenvalues of the tridiagonal matrix into `diagonal`, largest first; `squares` (n) holds the
// squares of its entries beside the diagonal, and is overwritten. True in the lanes that have
// converged.
template <typename V>
KF_INLINE Mask<V> tridiagonal_eigenvalues(V* diagonal, V* squares, int n) {
  Mask<V> failed = V{} > 0.0;
  for (int l = 0; l < n; ++l) {
    for (int iteration = 0;; ++iteration) {
      // The matrix splits at the first m >= l whose neighbour is negligible.
      V split = V{} + (n - 1.0);
      for (int m = n - 2; m >= l; --m) {
        const V scale = magnitude(diagonal[m] * diagonal[m + 1]);
        const V least = kRounding * kRounding + DBL_EPSILON * DBL_EPSILON * scale;
        split = choose(squares[m] <= least, V{} + static_cast<double>(m), split);
      }
      // Lanes that are done have split == l: no comparison below holds for them.
      const int top = static_cast<int>(largest_lane(split));
      if (top == l) break;
      const auto open = split > static_cast<double>(l);
      if (iteration == kMostIterations) {
        failed = failed | open;
        break;
      }
      // Wilkinson's shift.
      const V root = square_root(choose(open, squares[l], V{} + 1.0));
      const V turn = (diagonal[l + 1] - diagonal[l]) / (2.0 * root);
      const V length = square_root(turn * turn + 1.0);
      const V shift = diagonal[l] - root / (turn + choose(turn < 0.0, -length, length));
      V end = diagonal[l];
      for (int m = l + 1; m <= top; ++m)
        end = choose(split == static_cast<double>(m), diagonal[m], end);
      V c = V{} + 1.0, s{}, gamma = end - shift, p = gamma * gamma;
      for (int i = top - 1; i >= l; --i) {
        // A lane begins at its own split.
        const auto inside = split > static_cast<double>(i), below = split > i + 1.0;
        const V next = squares[i], sum = p + next;
        squares[i + 1] = choose(below, s * sum, squares[i + 1]);
        // c = p / sum, s = next / sum and 1 / c by one division.
        const V both = p * sum;
        const auto some = both > DBL_MIN;
        const V inverse = 1.0 / choose(some, both, V{} + 1.0);
        const V own = p * inverse;  // 1 / sum
        const V new_c = choose(some, p * own, V{});
        const V new_s = choose(some, next * own, V{} + 1.0);
        const V here = diagonal[i];
        const V new_gamma = new_c * (here - shift) - new_s * gamma;
        const V square = new_gamma * new_gamma;
        const V new_p = choose(some, square * (sum * sum) * inverse, c * next);
        diagonal[i + 1] = choose(inside, gamma + (here - new_gamma), diagonal[i + 1]);
        p = choose(inside, new_p, p);
        gamma = choose(inside, new_gamma, gamma);
        c = choose(inside, new_c, c);
        s = choose(inside, new_s, s);
      }
      squares[l] = choose(open, s * p, squares[l]);
      diagonal[l] = choose(open, shift + gamma, diagonal[l]);
      for (int m = l + 1; m <= top; ++m)
        squares[m] = choose(split == static_cast<double>(m), V{}, squares[m]);
    }
  }
  for (int end = n - 1; end > 0; --end)
    for (int i = 0; i < end; ++i) {
      const V above = diagonal[i], below = diagonal[i + 1];
      diagonal[i] = choose(above < below, below, above);
      diagonal[i + 1] = choose(above < below, above, below);
    }
  return !failed;
}

// One sweep of explicit QL on the rows from `first` on, in the lanes of `open`: T - shift I = Q^T L
// becomes L Q^T + shift I, with an eigenvalue at `first` where the shift is one. Rotation i of rows
// i and i+1 goes to cosines[i], sines[i].
template <typename V>
KF_INLINE void deflate(V* diagonal, V* beside, int n, int first, const V& shift,
                       const Mask<V>& open, V* cosines, V* sines) {
  constexpr double kNothing = 4096 * DBL_EPSILON * DBL_EPSILON;
  V c = V{} + 1.0, s{}, p = diagonal[n - 1] - shift;
  for (int i = n - 2; i >= first; --i) {
    const V next = beside[i], squares = p * p + next * next;
    // Where the eigenvalue belongs to a part of T further down, it comes up to `first`: each row
    // trades places with the next.
    const auto some = squares > kNothing;
    const V inverse = reciprocal_root(choose(some, squares, V{} + 1.0));
    const V new_c = choose(some, p * inverse, V{}), new_s = choose(some, next * inverse, V{} + 1.0);
    const V g = c * next, here = diagonal[i] - shift;
    beside[i + 1] = choose(open, s * choose(some, squares * inverse, V{}), beside[i + 1]);
    const V below = c * p + new_s * (new_c * g + new_s * here) + shift;
    diagonal[i + 1] = choose(open, below, diagonal[i + 1]);
    p = new_c * here - new_s * g;
    c = new_c;
    s = new_s;
    cosines[i] = choose(open, c, V{} + 1.0);
    sines[i] = choose(open, s, V{});
  }
  beside[first] = choose(open, s * p, beside[first]);
  diagonal[first] = choose(open, c * p + shift, diagonal[first]);
}

// Columns of `vectors` (n, ld) -= tau v v^T columns; v is in row j of the reflectors.
template <int Columns, typename V>
KF_INLINE void reflect(const V* v, int j, int n, int ld, V* vectors) {
  V dots[Columns];
  for (int c = 0; c < Columns; ++c) dots[c] = V{};
  for (int i = j + 1; i < n; ++i)
    for (int c = 0; c < Columns; ++c) dots[c] += v[i] * vectors[i * ld + c];
  for (int c = 0; c < Columns; ++c) dots[c] *= v[j];
  for (int i = j + 1; i < n; ++i)
    for (int c = 0; c < Columns; ++c) vectors[i * ld + c] -= v[i] * dots[c];
}

// Values that leading_eigenvectors works with.
inline int leading_workspace(int n, int count) { return 2 * n * count * kMostSweeps; }

constexpr int kMostLeading = 64;

// Orthonormal eigenvectors W (n, count) of the `count` largest eigenvalues, to a few units of
// rounding of the matrix: `values` (n) as tridiagonal_eigenvalues leaves them, the rest as
// tridiagonalise does; `diagonal` and `beside` are
// overwritten. Lane l wants the
// first wanted_l <= count <= kMostLeading. True where these have converged.
template <typename V>
KF_INLINE Mask<V> leading_eigenvectors(const V* reflectors, V* diagonal, V* beside, const V* values,
                                       int n, int count, const V& wanted, V* vectors, V* work) {
  V *cosines = work, *sines = work + n * count * kMostSweeps;
  int firsts[kMostLeading * kMostSweeps], sweeps = 0;
  Mask<V> failed = V{} > 0.0;
  const V first = magnitude(values[0]), last = magnitude(values[n - 1]);
  const V scale = choose(first < last, last, first), close = 256 * DBL_EPSILON * scale;
  for (int j = 0; j < count && j + 1 < n; ++j) {
    Mask<V> open = (wanted > static_cast<double>(j)) & !failed;
    const V least = DBL_EPSILON * (4.0 * scale + 32.0 * magnitude(values[j]));
    for (int sweep = 0; any(open); ++sweep) {
      if (sweep == kMostSweeps) {
        failed = failed | open;
        break;
      }
      deflate(diagonal, beside, n, j, values[j], open, cosines + sweeps * n, sines + sweeps * n);
      firsts[sweeps++] = j;
      const V apart = magnitude(diagonal[j] - values[j]);
      open = open & ((magnitude(beside[j]) > least) | (apart > close));
    }
  }
  for (int i = 0; i < n * count; ++i) vectors[i] = V{};
  for (int j = 0; j < count; ++j) vectors[j * count + j] += 1.0;
  // Row j of (the last sweep) ... (the first sweep), for every j, transposed.
  for (int sweep = sweeps - 1; sweep >= 0; --sweep) {
    const V *c = cosines + sweep * n, *s = sines + sweep * n;
    for (int i = firsts[sweep]; i + 1 < n; ++i) {
      V *row = vectors + i * count, *next = row + count;
      const V own_c = c[i], own_s = s[i];
      for (int v = firsts[sweep]; v < count; ++v) {
        const V a = row[v], b = next[v];
        row[v] = own_c * a + own_s * b;
        next[v] = own_c * b - own_s * a;
      }
    }
  }
  // ... H_1 H_0, the last reflector first.
  for (int j = n - 3; j >= 0; --j) {
    const V* v = reflectors + j * n;
    int first = 0;
    for (; first + 4 <= count; first += 4) reflect<4>(v, j, n, count, vectors + first);
    for (; first < count; ++first) reflect<1>(v, j, n, count, vectors + first);
  }
  return !failed;
}

}  // namespace koopfast
