// SPDX-License-Identifier: BSD-3-Clause
#include "moment_kernels.h"

#include "math/pack.h"

namespace koopfast {
namespace {

typedef float FloatPack __attribute__((vector_size(4 * kLanes)));

KF_INLINE Pack load(const double* values) {
  Pack out;
  __builtin_memcpy(&out, values, sizeof out);
  return out;
}

KF_INLINE Pack load(const float* values) {
  FloatPack narrow;
  __builtin_memcpy(&narrow, values, sizeof narrow);
  return __builtin_convertvector(narrow, Pack);
}

template <typename Half>
KF_INLINE Pack load(const Half* values) {
  alignas(64) double lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = widen(values[l]);
  return load(lanes);
}

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

}  // namespace koopfast
