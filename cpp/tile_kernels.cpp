// SPDX-License-Identifier: BSD-3-Clause
#include "tile_kernels.h"

#include "host_device.h"

namespace koopfast {
namespace {

constexpr int64_t kRowGroup = 4;  // rows of a sum of outer products that share the loads

}  // namespace

KF_MULTIARCH void widen_difference(const float* values, const float* reference, int64_t count,
                                   double* out) {
  if (reference == nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] = values[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<double>(values[i]) - static_cast<double>(reference[i]);
}

KF_MULTIARCH void widen_difference(const double* values, const double* reference, int64_t count,
                                   double* out) {
  if (reference == nullptr) {
    for (int64_t i = 0; i < count; ++i) out[i] = values[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i) out[i] = values[i] - reference[i];
}

KF_MULTIARCH void widen_difference(const Bfloat16* values, const Bfloat16* reference, int64_t count,
                                   double* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = widen(values[i]) - (reference == nullptr ? 0.0 : widen(reference[i]));
}

KF_MULTIARCH void widen_difference(const Float16* values, const Float16* reference, int64_t count,
                                   double* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = widen(values[i]) - (reference == nullptr ? 0.0 : widen(reference[i]));
}

KF_MULTIARCH void add_outer_products(const double* newer, const double* older, int64_t count,
                                     int64_t size, int64_t ld, double* sums) {
  for (int64_t i = 0; i < size; i += kRowGroup)
    for (int64_t j = 0; j < size; j += kColumnGroup) {
      double s0[kColumnGroup] = {}, s1[kColumnGroup] = {};
      double s2[kColumnGroup] = {}, s3[kColumnGroup] = {};
      for (int64_t t = 0; t < count; ++t) {
        const double *a = newer + t * ld + i, *b = older + t * ld + j;
        for (int64_t c = 0; c < kColumnGroup; ++c) {
          s0[c] += a[0] * b[c];
          s1[c] += a[1] * b[c];
          s2[c] += a[2] * b[c];
          s3[c] += a[3] * b[c];
        }
      }
      const double* group[kRowGroup] = {s0, s1, s2, s3};
      const int64_t rows = size - i < kRowGroup ? size - i : kRowGroup;
      for (int64_t r = 0; r < rows; ++r) {
        double* row = sums + (i + r) * size + j;
        if (j + kColumnGroup <= size)
          for (int64_t c = 0; c < kColumnGroup; ++c) row[c] += group[r][c];
        else
          for (int64_t c = 0; j + c < size; ++c) row[c] += group[r][c];
      }
    }
}

namespace {

// Inlined into each clone below, so that it is compiled for that clone's instruction set.
template <int Horizons, typename T>
[[gnu::always_inline]] inline void add_for(const WeightedRows<T>& rows, int64_t columns,
                                           double* out, int64_t ld) {
  int64_t t = 0;
  for (; t + 4 <= rows.count; t += 4) {
    const T *r0 = rows.first + t * rows.row_stride, *r1 = r0 + rows.row_stride;
    const T *r2 = r1 + rows.row_stride, *r3 = r2 + rows.row_stride, *last = rows.reference;
    double w[Horizons][4];
    for (int h = 0; h < Horizons; ++h)
      for (int i = 0; i < 4; ++i) w[h][i] = rows.weights[h * rows.weights_ld + t + i];
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
      const double from = widen(last[c]);
      const double d0 = widen(r0[c]) - from, d1 = widen(r1[c]) - from;
      const double d2 = widen(r2[c]) - from, d3 = widen(r3[c]) - from;
      for (int h = 0; h < Horizons; ++h)
        out[h * ld + c] += (w[h][0] * d0 + w[h][1] * d1) + (w[h][2] * d2 + w[h][3] * d3);
    }
  }
  for (; t < rows.count; ++t) {
    const T *row = rows.first + t * rows.row_stride, *last = rows.reference;
    for (int h = 0; h < Horizons; ++h) {
      const double w = rows.weights[h * rows.weights_ld + t];
      double* sums = out + h * ld;
#pragma omp simd
      for (int64_t c = 0; c < columns; ++c) sums[c] += w * (widen(row[c]) - widen(last[c]));
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void add_differences(const WeightedRows<T>& rows, int64_t horizons,
                                                   int64_t columns, double* out, int64_t ld) {
  switch (horizons) {
    case 1:
      return add_for<1>(rows, columns, out, ld);
    case 2:
      return add_for<2>(rows, columns, out, ld);
    case 3:
      return add_for<3>(rows, columns, out, ld);
    default:
      return add_for<4>(rows, columns, out, ld);
  }
}

}  // namespace

KF_MULTIARCH void add_weighted_differences(const WeightedRows<float>& rows, int64_t horizons,
                                           int64_t columns, double* out, int64_t ld) {
  add_differences(rows, horizons, columns, out, ld);
}

KF_MULTIARCH void add_weighted_differences(const WeightedRows<double>& rows, int64_t horizons,
                                           int64_t columns, double* out, int64_t ld) {
  add_differences(rows, horizons, columns, out, ld);
}

KF_MULTIARCH void add_weighted_differences(const WeightedRows<Bfloat16>& rows, int64_t horizons,
                                           int64_t columns, double* out, int64_t ld) {
  add_differences(rows, horizons, columns, out, ld);
}

KF_MULTIARCH void add_weighted_differences(const WeightedRows<Float16>& rows, int64_t horizons,
                                           int64_t columns, double* out, int64_t ld) {
  add_differences(rows, horizons, columns, out, ld);
}

bool has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

const char* instruction_set() {
  if (has_avx512()) return "avx512f";
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

}  // namespace koopfast
