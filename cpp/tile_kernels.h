// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "math/scalar.h"

// The loops that see every weight of every snapshot, compiled once per instruction set. They work
// on tiles: a few hundred columns of a block, widened to double, rows `ld` doubles apart.
namespace koopfast {

// Columns of a tile: 64 rows of 256 doubles are 128 KiB, half a level-2 cache or less.
constexpr int64_t kTileColumns = 256;
// gram_tile works on groups of this many rows; tiles are padded with zero rows to a multiple.
constexpr int64_t kRowGroup = 4;

// out[i] = values[i] - reference[i], in double. A null reference subtracts nothing.
void widen_difference(const float* values, const float* reference, int64_t count, double* out);
void widen_difference(const double* values, const double* reference, int64_t count, double* out);
void widen_difference(const Bfloat16* values, const Bfloat16* reference, int64_t count,
                      double* out);
void widen_difference(const Float16* values, const Float16* reference, int64_t count, double* out);

// gram[i][j] += sum_c tile[i][c] tile[j][c] for the row groups on and below the diagonal.
// tile (rows, columns), gram (rows, rows) contiguous; `rows` is a multiple of kRowGroup.
void gram_tile(const double* tile, int64_t rows, int64_t columns, int64_t ld, double* gram);

// out[c] = sum_t weights[t] tile[t][c] over `rows` rows.
void weighted_sum_tile(const double* tile, const double* weights, int64_t rows, int64_t columns,
                       int64_t ld, double* out);

// "avx512f", "avx2" or "baseline": which of the compiled variants this processor runs.
const char* instruction_set();

}  // namespace koopfast
