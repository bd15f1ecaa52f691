// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/pack.h"
#include "math/scalar.h"

// Eight numbers of any type, widened to a Pack.
namespace koopfast {

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

}  // namespace koopfast
