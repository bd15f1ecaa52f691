// SPDX-License-Identifier: BSD-3-Clause
#include "moment_kernels.h"

#include "pack_load.h"

namespace koopfast {
namespace {

KF_INLINE void store(const Pack& value, double* out) {
  __builtin_memcpy(out, &value, sizeof value);
}

template <typename T>
KF_INLINE void widen_each(const T* values, int64_t stride, int64_t rows, int64_t columns,
                          bool increments, double* out, int64_t ld) {
  for (int64_t t = 0; t < rows; ++t) {
    const T *row = values + t * stride, *next = row + stride;
    double* to = out + t * ld;
    if (columns < kLanes) {
      for (int64_t c = 0; c < columns; ++c)
        to[c] = increments ? widen(next[c]) - widen(row[c]) : widen(row[c]);
      continue;
    }
    // The last vector overlaps the one before: runs are short, and a remainder would be costly.
    for (int64_t c = 0;; c = c + 2 * kLanes <= columns ? c + kLanes : columns - kLanes) {
      store(increments ? load(next + c) - load(row + c) : load(row + c), to + c);
      if (c + kLanes >= columns) break;
    }
  }
}

// R rows by C vectors of the sums in registers.
template <int R, int C>
KF_INLINE void add_tile(const double* left, const double* right, int64_t rows, int64_t ld,
                        double* sums) {
  Pack own[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) own[r][c] = load(sums + r * ld + c * kLanes);
  for (int64_t t = 0; t < rows; ++t) {
    Pack values[C];
    for (int c = 0; c < C; ++c) values[c] = load(right + t * ld + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const double factor = left[t * ld + r];
      for (int c = 0; c < C; ++c) own[r][c] += factor * values[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(own[r][c], sums + r * ld + c * kLanes);
}

template <int C>
KF_INLINE void add_rows(const double* left, const double* right, int64_t rows, int64_t count,
                        int64_t ld, double* sums) {
  switch (count) {
    case 1:
      return add_tile<1, C>(left, right, rows, ld, sums);
    case 2:
      return add_tile<2, C>(left, right, rows, ld, sums);
    case 3:
      return add_tile<3, C>(left, right, rows, ld, sums);
    default:
      return add_tile<4, C>(left, right, rows, ld, sums);
  }
}

}  // namespace

KF_MULTIARCH void widen_rows(const float* values, int64_t stride, int64_t rows, int64_t columns,
                             bool increments, double* out, int64_t ld) {
  widen_each(values, stride, rows, columns, increments, out, ld);
}

KF_MULTIARCH void widen_rows(const double* values, int64_t stride, int64_t rows, int64_t columns,
                             bool increments, double* out, int64_t ld) {
  widen_each(values, stride, rows, columns, increments, out, ld);
}

KF_MULTIARCH void widen_rows(const Bfloat16* values, int64_t stride, int64_t rows, int64_t columns,
                             bool increments, double* out, int64_t ld) {
  widen_each(values, stride, rows, columns, increments, out, ld);
}

KF_MULTIARCH void widen_rows(const Float16* values, int64_t stride, int64_t rows, int64_t columns,
                             bool increments, double* out, int64_t ld) {
  widen_each(values, stride, rows, columns, increments, out, ld);
}

KF_MULTIARCH void add_products(const double* left, const double* right, int64_t rows,
                               int64_t weights, int64_t ld, bool lower, double* sums) {
  for (int64_t i = 0; i < weights; i += 4) {
    const int64_t count = weights - i < 4 ? weights - i : 4;
    const int64_t end = lower ? (i + count + kLanes - 1) / kLanes * kLanes : ld;
    for (int64_t j = 0; j < end;) {
      double* own = sums + i * ld + j;
      if (end - j >= 3 * kLanes) {
        add_rows<3>(left + i, right + j, rows, count, ld, own);
        j += 3 * kLanes;
      } else if (end - j >= 2 * kLanes) {
        add_rows<2>(left + i, right + j, rows, count, ld, own);
        j += 2 * kLanes;
      } else {
        add_rows<1>(left + i, right + j, rows, count, ld, own);
        j += kLanes;
      }
    }
  }
}

namespace {

// Rows of blocks are short, and far apart: the processor does not see what comes next.
constexpr int64_t kAhead = 8;

template <typename T>
KF_INLINE void widen_lanes(const T* const* values, int64_t stride, int64_t rows, int64_t columns,
                           double* out) {
  for (int64_t t = 0; t < rows; ++t, out += columns * kLanes) {
    const int64_t at = t * stride, ahead = (t + kAhead < rows ? t + kAhead : rows - 1) * stride;
    if (columns < kLanes) {
      for (int64_t c = 0; c < columns; ++c)
        for (int l = 0; l < kLanes; ++l) out[c * kLanes + l] = widen(values[l][at + c]);
      continue;
    }
    // The last square of eight columns overlaps the one before.
    for (int64_t c = 0;; c = c + 2 * kLanes <= columns ? c + kLanes : columns - kLanes) {
      Pack square[kLanes];
      for (int l = 0; l < kLanes; ++l) __builtin_prefetch(values[l] + ahead + c);
      for (int l = 0; l < kLanes; ++l) square[l] = load(values[l] + at + c);
      transpose(square);
      for (int j = 0; j < kLanes; ++j) store(square[j], out + (c + j) * kLanes);
      if (c + kLanes >= columns) break;
    }
  }
}

// R by C entries of the sums in registers.
template <int R, int C>
KF_INLINE void add_lane_tile(const double* left, const double* right, int64_t rows, int64_t n,
                             double* sums) {
  Pack own[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) own[r][c] = load(sums + (r * n + c) * kLanes);
  for (int64_t t = 0; t < rows; ++t, left += n * kLanes, right += n * kLanes) {
    Pack values[C];
    for (int c = 0; c < C; ++c) values[c] = load(right + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const Pack factor = load(left + r * kLanes);
      for (int c = 0; c < C; ++c) own[r][c] += factor * values[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(own[r][c], sums + (r * n + c) * kLanes);
}

template <int R>
KF_INLINE void add_lane_row(const double* left, const double* right, int64_t rows, int64_t n,
                            int64_t end, double* sums) {
  int64_t j = 0;
  for (; j + 4 <= end; j += 4)
    add_lane_tile<R, 4>(left, right + j * kLanes, rows, n, sums + j * kLanes);
  const double* rest = right + j * kLanes;
  switch (end - j) {
    case 1:
      return add_lane_tile<R, 1>(left, rest, rows, n, sums + j * kLanes);
    case 2:
      return add_lane_tile<R, 2>(left, rest, rows, n, sums + j * kLanes);
    case 3:
      return add_lane_tile<R, 3>(left, rest, rows, n, sums + j * kLanes);
  }
}

}  // namespace

KF_MULTIARCH void lane_widen(const float* const* values, int64_t stride, int64_t rows,
                             int64_t columns, double* out) {
  widen_lanes(values, stride, rows, columns, out);
}

KF_MULTIARCH void lane_widen(const double* const* values, int64_t stride, int64_t rows,
                             int64_t columns, double* out) {
  widen_lanes(values, stride, rows, columns, out);
}

KF_MULTIARCH void lane_widen(const Bfloat16* const* values, int64_t stride, int64_t rows,
                             int64_t columns, double* out) {
  widen_lanes(values, stride, rows, columns, out);
}

KF_MULTIARCH void lane_widen(const Float16* const* values, int64_t stride, int64_t rows,
                             int64_t columns, double* out) {
  widen_lanes(values, stride, rows, columns, out);
}

KF_MULTIARCH void lane_differences(int64_t entries, int64_t columns, double* tile) {
  for (int64_t e = 0; e < entries; ++e)
    store(load(tile + (e + columns) * kLanes) - load(tile + e * kLanes), tile + e * kLanes);
}

KF_MULTIARCH void lane_add_products(const double* left, const double* right, int64_t rows,
                                    int64_t n, bool same, double* sums) {
  for (int64_t i = 0; i < n; i += 4) {
    const double* own = left + i * kLanes;
    double* out = sums + i * n * kLanes;
    const int64_t count = n - i < 4 ? n - i : 4, end = same ? i + count : n;
    switch (count) {
      case 1:
        add_lane_row<1>(own, right, rows, n, end, out);
        break;
      case 2:
        add_lane_row<2>(own, right, rows, n, end, out);
        break;
      case 3:
        add_lane_row<3>(own, right, rows, n, end, out);
        break;
      default:
        add_lane_row<4>(own, right, rows, n, end, out);
    }
  }
  for (int64_t i = 0; same && i < n; ++i)
    for (int64_t j = 0; j < i; ++j)
      store(load(sums + (i * n + j) * kLanes), sums + (j * n + i) * kLanes);
}

}  // namespace koopfast
