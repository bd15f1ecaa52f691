// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

// The loop behind snapshot_gram, compiled per instruction set: a block's columns go by in tiles
// that a level-1 cache holds, widened to double, and every sum stays a vector wide until the last
// tile.
namespace koopfast {

// Rows and columns of a tile are padded with zeros to a multiple of these.
constexpr int64_t kGramRows = 4, kGramLanes = 8;
// Columns of a tile: 32 rows of 128 doubles are 32 KiB.
constexpr int64_t kGramColumns = 128;

// Where the next tile will be read from: `bytes` of each row, rows `stride` bytes apart. Only a
// hint, for tiles are too short to be foreseen by the processor.
struct Upcoming {
  const char* first;
  int64_t stride;
  int64_t bytes;
};

// Doubles of the sums of `rows` rows: for each group of four rows and each such group up to it,
// sixteen entries of kGramLanes partial sums.
int64_t gram_sums_size(int64_t rows);

// sums += tile tile^T. tile (rows, kGramColumns), of which the first `columns` count; both arrays
// aligned to 64 bytes.
void gram_tile(const double* tile, int64_t rows, int64_t columns, const Upcoming& next,
               double* sums);

// gram[i][j] += the sums' totals, for the groups on and below the diagonal. gram (rows, rows).
void add_gram_sums(const double* sums, int64_t rows, double* gram);

}  // namespace koopfast
