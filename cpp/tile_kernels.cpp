// SPDX-License-Identifier: BSD-3-Clause
#include "tile_kernels.h"

#include "host_device.h"
#include "pack_load.h"

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
template <int Horizons, int Rows, typename T>
[[gnu::always_inline]] inline void add_pack(const T* first, int64_t row_stride, const T* last,
                                            const double (*w)[Rows], double* out, int64_t ld) {
  const Pack from = load(last);
  Pack d[Rows];
  for (int i = 0; i < Rows; ++i) d[i] = load(first + i * row_stride) - from;
  for (int h = 0; h < Horizons; ++h) {
    Pack sum = load(out + h * ld);
    for (int i = 0; i < Rows; ++i) sum += w[h][i] * d[i];
    __builtin_memcpy(out + h * ld, &sum, sizeof sum);
  }
}

// Rows t .. t + Rows - 1; meanwhile as many are fetched from `ahead`, where they will be read next:
// stripes are too short to be foreseen by the processor.
template <int Horizons, int Rows, typename T>
[[gnu::always_inline]] inline void add_rows(const WeightedRows<T>& rows, int64_t t, const T* ahead,
                                            int64_t columns, double* out, int64_t ld) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const T *first = rows.first + t * rows.row_stride, *last = rows.reference;
  double w[Horizons][Rows];
  for (int h = 0; h < Horizons; ++h)
    for (int i = 0; i < Rows; ++i) w[h][i] = rows.weights[h * rows.weights_ld + t + i];
  int64_t c = 0;
  for (; c + kLine <= columns; c += kLine) {
    for (int i = 0; i < Rows; ++i) __builtin_prefetch(ahead + i * rows.row_stride + c, 0, 2);
    for (int64_t p = c; p < c + kLine; p += kLanes)
      add_pack<Horizons, Rows>(first + p, rows.row_stride, last + p, w, out + p, ld);
  }
  for (; c + kLanes <= columns; c += kLanes)
    add_pack<Horizons, Rows>(first + c, rows.row_stride, last + c, w, out + c, ld);
  for (; c < columns; ++c)
    for (int h = 0; h < Horizons; ++h)
      for (int i = 0; i < Rows; ++i)
        out[h * ld + c] += w[h][i] * (widen(first[i * rows.row_stride + c]) - widen(last[c]));
}

template <int Horizons, typename T>
[[gnu::always_inline]] inline void add_for(const WeightedRows<T>& rows, int64_t columns,
                                           double* out, int64_t ld) {
  int64_t t = 0;
  for (; t + 4 <= rows.count; t += 4) {
    const T* next =
        t + 8 <= rows.count ? rows.first + (t + 4) * rows.row_stride : rows.first + columns;
    add_rows<Horizons, 4>(rows, t, next, columns, out, ld);
  }
  const T* next = rows.first + columns;
  switch (rows.count - t) {
    case 1:
      return add_rows<Horizons, 1>(rows, t, next, columns, out, ld);
    case 2:
      return add_rows<Horizons, 2>(rows, t, next, columns, out, ld);
    case 3:
      return add_rows<Horizons, 3>(rows, t, next, columns, out, ld);
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

namespace {

template <typename T>
[[gnu::always_inline]] inline void write_all(const T* last, double share, const double* change,
                                             int64_t count, T* out) {
  // (Not 0 * last: what a prediction leaves behind may be infinite.)
  const bool none = share == 0, all = share == 1;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const double now = widen(last[i]), moved = (none ? 0.0 : share * now) + change[i];
    T next;
    narrow(moved, next);
    out[i] = all & (change[i] == 0) ? last[i] : next;
  }
}

}  // namespace

KF_MULTIARCH void write_weights(const float* last, double share, const double* change,
                                int64_t count, float* out) {
  write_all(last, share, change, count, out);
}

KF_MULTIARCH void write_weights(const double* last, double share, const double* change,
                                int64_t count, double* out) {
  write_all(last, share, change, count, out);
}

KF_MULTIARCH void write_weights(const Bfloat16* last, double share, const double* change,
                                int64_t count, Bfloat16* out) {
  write_all(last, share, change, count, out);
}

KF_MULTIARCH void write_weights(const Float16* last, double share, const double* change,
                                int64_t count, Float16* out) {
  write_all(last, share, change, count, out);
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
