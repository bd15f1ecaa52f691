// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/pack.h"

// Products of small row-major matrices of V (math/pack.h).
namespace koopfast {

// y = A x, rows of A `ld` values apart.
template <typename V>
KF_INLINE void multiply_vector(const V* a, int ld, const V* x, int rows, int columns, V* y) {
  int i = 0;
  for (; i + 4 <= rows; i += 4) {
    const V *a0 = a + i * ld, *a1 = a0 + ld, *a2 = a1 + ld, *a3 = a2 + ld;
    V s0{}, s1{}, s2{}, s3{};
    for (int j = 0; j < columns; ++j) {
      const V own = x[j];
      s0 += a0[j] * own;
      s1 += a1[j] * own;
      s2 += a2[j] * own;
      s3 += a3[j] * own;
    }
    y[i] = s0;
    y[i + 1] = s1;
    y[i + 2] = s2;
    y[i + 3] = s3;
  }
  for (; i < rows; ++i) {
    V sum{};
    for (int j = 0; j < columns; ++j) sum += a[i * ld + j] * x[j];
    y[i] = sum;
  }
}

// Entries i .. i+R-1, j .. j+C-1 of A B, summed in registers; A's entry (i, l) is at
// a[i * row + l * step].
template <int R, int C, typename V>
KF_INLINE void multiply_tile(const V* a, int row, int step, const V* b, int inner, int columns,
                             int i, int j, V* out) {
  V sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = V{};
  for (int l = 0; l < inner; ++l) {
    V right[C];
    for (int c = 0; c < C; ++c) right[c] = b[l * columns + j + c];
    for (int r = 0; r < R; ++r) {
      const V own = a[(i + r) * row + l * step];
      for (int c = 0; c < C; ++c) sums[r][c] += own * right[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) out[(i + r) * columns + j + c] = sums[r][c];
}

// Each entry is summed in the order of `inner`.
template <typename V>
KF_INLINE void multiply_strided(const V* a, int row, int step, const V* b, int rows, int inner,
                                int columns, V* out) {
  constexpr int kTile = 4;
  if (rows < kTile || columns < kTile) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j)
        multiply_tile<1, 1>(a, row, step, b, inner, columns, i, j, out);
    return;
  }
  // The last tiles overlap those before them: no tile is cut.
  for (int i = 0; i < rows; i += kTile) {
    const int top = i + kTile <= rows ? i : rows - kTile;
    for (int j = 0; j < columns; j += kTile) {
      const int left = j + kTile <= columns ? j : columns - kTile;
      multiply_tile<kTile, kTile>(a, row, step, b, inner, columns, top, left, out);
    }
  }
}

// out = A B of (rows, inner) and (inner, columns).
template <typename V>
KF_INLINE void multiply(const V* a, const V* b, int rows, int inner, int columns, V* out) {
  multiply_strided(a, inner, 1, b, rows, inner, columns, out);
}

// out = A^T B of (inner, rows) and (inner, columns).
template <typename V>
KF_INLINE void multiply_transposed(const V* a, const V* b, int rows, int inner, int columns,
                                   V* out) {
  multiply_strided(a, 1, rows, b, rows, inner, columns, out);
}

// out = B D^-1 of (rows, k) and a nearly diagonal (k, k): `inverse` holds 1 / D_jj, and one step of
// refinement takes care of the rest. Where `inverse` is zero, so is the column. `work` holds rows*k
// values.
template <typename V>
KF_INLINE void divide_nearly_diagonal(const V* b, const V* d, const V* inverse, int rows, int k,
                                      V* out, V* work) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < k; ++j) out[i * k + j] = b[i * k + j] * inverse[j];
  multiply(out, d, rows, k, k, work);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < k; ++j) out[i * k + j] += (b[i * k + j] - work[i * k + j]) * inverse[j];
}

}  // namespace koopfast
