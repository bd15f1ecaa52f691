// SPDX-License-Identifier: BSD-3-Clause
#include "gram_kernel.h"

#include <algorithm>

#include "host_device.h"
#include "tile_kernels.h"

namespace koopfast {
namespace {

constexpr int64_t kLine = 64;  // bytes that are fetched together
constexpr int64_t kEntries = kGramRows * kGramRows;

template <int Width>
struct VectorOf {
  typedef double type __attribute__((vector_size(8 * Width)));
};

// All entries of a group, as the first column of those on or below the diagonal.
constexpr int kWhole = -kGramRows;

// Four rows by Columns rows, their sums in registers: each loaded value is used that many times.
// Entries (r, c) with r >= First + c alone: a group on the diagonal needs no others.
template <int Width, int Columns, int First>
KF_INLINE void add_products(const double* left, const double* right, int64_t columns,
                            double* sums) {
  using V = typename VectorOf<Width>::type;
  V own[kGramRows][Columns];
  for (int r = 0; r < kGramRows; ++r)
    for (int c = 0; c < Columns; ++c) own[r][c] = V{};
  for (int64_t x = 0; x < columns; x += Width) {
    V values[Columns];
    for (int c = 0; c < Columns; ++c)
      __builtin_memcpy(&values[c], right + c * kGramColumns + x, sizeof(V));
    for (int r = 0; r < kGramRows; ++r) {
      if (r < First) continue;
      V row;
      __builtin_memcpy(&row, left + r * kGramColumns + x, sizeof(V));
      for (int c = 0; c < Columns && First + c <= r; ++c) own[r][c] += row * values[c];
    }
  }
  for (int r = 0; r < kGramRows; ++r)
    for (int c = 0; c < Columns && First + c <= r; ++c) {
      // Added tile by tile, rounding does not grow with every column.
      double* total = sums + (r * kGramRows + c) * kGramLanes;
      V before;
      __builtin_memcpy(&before, total, sizeof(V));
      own[r][c] += before;
      __builtin_memcpy(total, &own[r][c], sizeof(V));
    }
}

template <int Width, int Columns>
KF_INLINE void add_tile(const double* tile, int64_t rows, int64_t columns, const Upcoming& next,
                        double* sums) {
  // While the arithmetic of a group goes on, a few rows of the next tile are fetched.
  const int64_t groups = gram_sums_size(rows) / (kEntries * kGramLanes);
  const int64_t each = (rows + groups - 1) / groups;
  int64_t fetched = 0;
  for (int64_t i = 0; i < rows; i += kGramRows)
    for (int64_t j = 0; j <= i; j += kGramRows) {
      for (const int64_t end = std::min(fetched + each, rows); fetched < end; ++fetched)
        for (int64_t byte = 0; byte < next.bytes; byte += kLine)
          __builtin_prefetch(next.first + fetched * next.stride + byte);
      const double *left = tile + i * kGramColumns, *right = tile + j * kGramColumns;
      const double* second = right + Columns * kGramColumns;  // where there are two halves
      if (i == j) {
        add_products<Width, Columns, 0>(left, right, columns, sums);
        if (Columns < kGramRows)
          add_products<Width, Columns, Columns>(left, second, columns, sums + Columns * kGramLanes);
      } else {
        add_products<Width, Columns, kWhole>(left, right, columns, sums);
        if (Columns < kGramRows)
          add_products<Width, Columns, kWhole>(left, second, columns, sums + Columns * kGramLanes);
      }
      sums += kEntries * kGramLanes;
    }
}

#ifdef KF_AVX512
// Thirty-two registers of eight doubles hold sixteen sums.
KF_AVX512 void add_wide_tile(const double* tile, int64_t rows, int64_t columns,
                             const Upcoming& next, double* sums) {
  add_tile<8, 4>(tile, rows, columns, next, sums);
}
#endif

// Sixteen registers of four hold eight.
KF_MULTIARCH void add_narrow_tile(const double* tile, int64_t rows, int64_t columns,
                                  const Upcoming& next, double* sums) {
  add_tile<4, 2>(tile, rows, columns, next, sums);
}

}  // namespace

int64_t gram_sums_size(int64_t rows) {
  const int64_t groups = rows / kGramRows;
  return groups * (groups + 1) / 2 * kEntries * kGramLanes;
}

void gram_tile(const double* tile, int64_t rows, int64_t columns, const Upcoming& next,
               double* sums) {
#ifdef KF_AVX512
  static const bool wide = has_avx512();
  if (wide) return add_wide_tile(tile, rows, columns, next, sums);
#endif
  add_narrow_tile(tile, rows, columns, next, sums);
}

KF_MULTIARCH void add_gram_sums(const double* sums, int64_t rows, double* gram) {
  for (int64_t i = 0; i < rows; i += kGramRows)
    for (int64_t j = 0; j <= i; j += kGramRows)
      for (int64_t r = 0; r < kGramRows; ++r)
        for (int64_t c = 0; c < kGramRows; ++c, sums += kGramLanes)
          gram[(i + r) * rows + j + c] += ((sums[0] + sums[4]) + (sums[2] + sums[6])) +
                                          ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace koopfast
