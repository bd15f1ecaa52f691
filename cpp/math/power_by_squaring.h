// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "host_device.h"

// Operator powers without an eigenbasis, for a row-major (k, k) matrix A.
//   power:           y = A^e v
//   geometric sum:   y = (I + A + ... + A^(e-1)) v,  from  S_(a+b) = S_a + A^a S_b
// A defective or nearly defective operator loses no digits here that it would not lose by stepping.
namespace koopfast {

KF_HD inline void multiply_vector(const double* a, const double* x, int k, double* y) {
  for (int i = 0; i < k; ++i) {
    double sum = 0;
    for (int j = 0; j < k; ++j) sum += a[i * k + j] * x[j];
    y[i] = sum;
  }
}

KF_HD inline void square_matrix(const double* a, int k, double* out) {
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < k; ++j) out[i * k + j] = 0;
    for (int l = 0; l < k; ++l) {
      const double factor = a[i * k + l];
      for (int j = 0; j < k; ++j) out[i * k + j] += factor * a[l * k + j];
    }
  }
}

// Doubles a pair (A^e, S_e v) in place; `scratch` holds k*k + k numbers.
KF_HD inline void double_step(double* a, double* partial, int k, double* scratch) {
  double* image = scratch + k * k;
  multiply_vector(a, partial, k, image);
  for (int i = 0; i < k; ++i) partial[i] += image[i];
  square_matrix(a, k, scratch);
  for (int i = 0; i < k * k; ++i) a[i] = scratch[i];
}

// Writes A^e v to `power` and S_e v to `sum`. `work` holds 2 k*k + 3 k numbers.
KF_HD inline void power_by_squaring(const double* a, const double* v, int k, uint64_t exponent,
                                    double* power, double* sum, double* work) {
  double* square = work;
  double* partial = square + k * k;
  double* image = partial + k;
  double* scratch = image + k;
  for (int i = 0; i < k * k; ++i) square[i] = a[i];
  for (int i = 0; i < k; ++i) {
    partial[i] = v[i];
    power[i] = v[i];
    sum[i] = 0;
  }
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1u) {
      multiply_vector(square, power, k, image);
      for (int i = 0; i < k; ++i) power[i] = image[i];
      multiply_vector(square, sum, k, image);
      for (int i = 0; i < k; ++i) sum[i] = partial[i] + image[i];
    }
    if (exponent > 1) double_step(square, partial, k, scratch);
  }
}

}  // namespace koopfast
