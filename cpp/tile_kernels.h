// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "math/scalar.h"

// The loops that see every weight of every snapshot, compiled once per instruction set. They work
// on tiles: a few hundred columns of a block, widened to double, rows `ld` doubles apart.
namespace koopfast {

// Columns of a tile: 64 rows of 256 doubles are 128 KiB, half a level-2 cache or less.
constexpr int64_t kTileColumns = 256;
// out[i] = values[i] - reference[i], in double. A null reference subtracts nothing.
void widen_difference(const float* values, const float* reference, int64_t count, double* out);
void widen_difference(const double* values, const double* reference, int64_t count, double* out);
void widen_difference(const Bfloat16* values, const Bfloat16* reference, int64_t count,
                      double* out);
void widen_difference(const Float16* values, const Float16* reference, int64_t count, double* out);

// sums[i][j] += sum_t newer[t][i] older[t][j]: `count` rows, `ld` doubles apart, that are zero from
// `size` on; ld is a multiple of kColumnGroup, sums (size, size) contiguous.
constexpr int64_t kColumnGroup = 8;
void add_outer_products(const double* newer, const double* older, int64_t count, int64_t size,
                        int64_t ld, double* sums);

// out[h][c] += sum_t weights[h][t] (rows[t][c] - reference[c]), in double, for four snapshots at a
// time and up to kHorizonGroup horizons, which share the loads. out rows are `ld` doubles apart,
// weights rows `weights_ld`; rows[t] = first + t * row_stride.
constexpr int64_t kHorizonGroup = 4;
template <typename T>
struct WeightedRows {
  const T* first;
  int64_t row_stride;
  int64_t count;
  const T* reference;
  const double* weights;  // (horizons, weights_ld)
  int64_t weights_ld;
};
void add_weighted_differences(const WeightedRows<float>& rows, int64_t horizons, int64_t columns,
                              double* out, int64_t ld);
void add_weighted_differences(const WeightedRows<double>& rows, int64_t horizons, int64_t columns,
                              double* out, int64_t ld);
void add_weighted_differences(const WeightedRows<Bfloat16>& rows, int64_t horizons, int64_t columns,
                              double* out, int64_t ld);
void add_weighted_differences(const WeightedRows<Float16>& rows, int64_t horizons, int64_t columns,
                              double* out, int64_t ld);

// out[i] = share last[i] + change[i]; what does not move keeps its bits, the sign of zero included.
void write_weights(const float* last, double share, const double* change, int64_t count,
                   float* out);
void write_weights(const double* last, double share, const double* change, int64_t count,
                   double* out);
void write_weights(const Bfloat16* last, double share, const double* change, int64_t count,
                   Bfloat16* out);
void write_weights(const Float16* last, double share, const double* change, int64_t count,
                   Float16* out);

bool has_avx512();

// "avx512f", "avx2" or "baseline": which of the compiled variants this processor runs.
const char* instruction_set();

}  // namespace koopfast
