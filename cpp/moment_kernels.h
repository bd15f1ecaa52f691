// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "math/scalar.h"

// The loops behind moments.cpp, compiled once per instruction set. Tiles are (time, weights): rows
// of a block, widened to double, `ld` doubles apart, where ld is a multiple of kMomentWidth and the
// columns from `weights` on are zero.
namespace koopfast {

constexpr int64_t kMomentWidth = 8;

// out[t][c] = values[t][c], or values[t + 1][c] - values[t][c] as increments; rows of `values` are
// `stride` elements apart.
void widen_rows(const float* values, int64_t stride, int64_t rows, int64_t columns, bool increments,
                double* out, int64_t ld);
void widen_rows(const double* values, int64_t stride, int64_t rows, int64_t columns,
                bool increments, double* out, int64_t ld);
void widen_rows(const Bfloat16* values, int64_t stride, int64_t rows, int64_t columns,
                bool increments, double* out, int64_t ld);
void widen_rows(const Float16* values, int64_t stride, int64_t rows, int64_t columns,
                bool increments, double* out, int64_t ld);

// sums[i][j] += sum_t left[t][i] right[t][j] for i < weights, j < ld: (weights, ld). Where `lower`,
// only entries up to the diagonal are wanted, and vectors that lie beyond it are left out.
void add_products(const double* left, const double* right, int64_t rows, int64_t weights,
                  int64_t ld, bool lower, double* sums);

// The same of eight blocks side by side, as lane_kernels.h has them: tiles are (rows, columns)
// entries of eight lanes.
// out[t][c] = values[l][t * stride + c] of lane l.
void lane_widen(const float* const* values, int64_t stride, int64_t rows, int64_t columns,
                double* out);
void lane_widen(const double* const* values, int64_t stride, int64_t rows, int64_t columns,
                double* out);
void lane_widen(const Bfloat16* const* values, int64_t stride, int64_t rows, int64_t columns,
                double* out);
void lane_widen(const Float16* const* values, int64_t stride, int64_t rows, int64_t columns,
                double* out);

// tile[e] = tile[e + columns] - tile[e].
void lane_differences(int64_t entries, int64_t columns, double* tile);

// sums[i][j] += sum_t left[t][i] right[t][j], (n, n); where left is right, `same`, by half of the
// products.
void lane_add_products(const double* left, const double* right, int64_t rows, int64_t n, bool same,
                       double* sums);

}  // namespace koopfast
