// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "math/small_matrix.h"

// Operator powers without an eigenbasis, for row-major (k, k) matrices A of V (math/pack.h).
//   power:           y = A^e v
//   geometric sum:   y = (I + A + ... + A^(e-1)) v,  from  S_(a+b) = S_a + A^a S_b
// A defective or nearly defective operator loses no digits here that it would not lose by stepping.
namespace koopfast {

// After how many squarings stepping with the square is cheaper than squaring on. A function of k
// and e alone: what a horizon yields must not depend on the others asked for with it.
KF_HD inline int squarings(int k, uint64_t exponent) {
  int level = 0;
  while (exponent >> 1 > static_cast<uint64_t>(k) + 1) {
    ++level;
    exponent >>= 1;
  }
  return level;
}

// Writes A^e v (or, with `sums`, S_e v) for each of `count` exponents, (count, k). All share their
// squares. `work` holds 2 k*k + 2 k values.
template <typename V>
KF_INLINE void power_by_squaring(const V* a, const V* v, int k, const uint64_t* exponents,
                                 int64_t count, bool sums, V* out, V* work) {
  V *square = work, *next = work + k * k, *partial = next + k * k, *image = partial + k;
  int levels = 0;
  for (int64_t h = 0; h < count; ++h) {
    for (int i = 0; i < k; ++i) out[h * k + i] = sums ? V{} : v[i];
    const int own = squarings(k, exponents[h]);
    levels = own > levels ? own : levels;
  }
  for (int i = 0; i < k * k; ++i) square[i] = a[i];
  for (int i = 0; i < k; ++i) partial[i] = sums ? v[i] : V{};
  // At each level `square` is A^(2^level) and `partial` S_(2^level) v.
  for (int level = 0;; ++level) {
    for (int64_t h = 0; h < count; ++h) {
      const int own = squarings(k, exponents[h]);
      if (level > own) continue;
      const uint64_t left = exponents[h] >> level;
      for (uint64_t step = level < own ? left & 1u : left; step > 0; --step) {
        V* y = out + h * k;
        multiply_vector(square, k, y, k, k, image);
        for (int i = 0; i < k; ++i) y[i] = partial[i] + image[i];
      }
    }
    if (level == levels) return;
    if (sums) {
      multiply_vector(square, k, partial, k, k, image);
      for (int i = 0; i < k; ++i) partial[i] += image[i];
    }
    multiply(square, square, k, k, k, next);
    V* const last = square;
    square = next;
    next = last;
  }
}

}  // namespace koopfast
