// SPDX-License-Identifier: BSD-3-Clause
#include "tile_kernels.h"

#include "host_device.h"

namespace koopfast {

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

KF_MULTIARCH void gram_tile(const double* tile, int64_t rows, int64_t columns, int64_t ld,
                            double* gram) {
  for (int64_t i = 0; i < rows; i += kRowGroup) {
    const double *a0 = tile + i * ld, *a1 = a0 + ld, *a2 = a1 + ld, *a3 = a2 + ld;
    for (int64_t j = 0; j <= i; j += kRowGroup) {
      const double *b0 = tile + j * ld, *b1 = b0 + ld, *b2 = b1 + ld, *b3 = b2 + ld;
      // Sixteen running sums, each a register wide: every loaded value is used four times.
      double s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      double s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
#pragma omp simd reduction(+ : s00, s01, s02, s03, s10, s11, s12, s13) \
    reduction(+ : s20, s21, s22, s23, s30, s31, s32, s33)
      for (int64_t c = 0; c < columns; ++c) {
        s00 += a0[c] * b0[c];
        s01 += a0[c] * b1[c];
        s02 += a0[c] * b2[c];
        s03 += a0[c] * b3[c];
        s10 += a1[c] * b0[c];
        s11 += a1[c] * b1[c];
        s12 += a1[c] * b2[c];
        s13 += a1[c] * b3[c];
        s20 += a2[c] * b0[c];
        s21 += a2[c] * b1[c];
        s22 += a2[c] * b2[c];
        s23 += a2[c] * b3[c];
        s30 += a3[c] * b0[c];
        s31 += a3[c] * b1[c];
        s32 += a3[c] * b2[c];
        s33 += a3[c] * b3[c];
      }
      const double sums[kRowGroup][kRowGroup] = {
          {s00, s01, s02, s03}, {s10, s11, s12, s13}, {s20, s21, s22, s23}, {s30, s31, s32, s33}};
      for (int64_t r = 0; r < kRowGroup; ++r)
        for (int64_t s = 0; s < kRowGroup; ++s) gram[(i + r) * rows + j + s] += sums[r][s];
    }
  }
}

KF_MULTIARCH void weighted_sum_tile(const double* tile, const double* weights, int64_t rows,
                                    int64_t columns, int64_t ld, double* out) {
  for (int64_t c = 0; c < columns; ++c) out[c] = 0;
  int64_t t = 0;
  // Four rows at a time: one load and one store of `out` for four products.
  for (; t + 4 <= rows; t += 4) {
    const double *d0 = tile + t * ld, *d1 = d0 + ld, *d2 = d1 + ld, *d3 = d2 + ld;
    const double w0 = weights[t], w1 = weights[t + 1], w2 = weights[t + 2], w3 = weights[t + 3];
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c)
      out[c] += (w0 * d0[c] + w1 * d1[c]) + (w2 * d2[c] + w3 * d3[c]);
  }
  for (; t < rows; ++t) {
    const double* d0 = tile + t * ld;
    const double w0 = weights[t];
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) out[c] += w0 * d0[c];
  }
}

const char* instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return "avx512f";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

}  // namespace koopfast
