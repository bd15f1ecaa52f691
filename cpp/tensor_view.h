// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "math/scalar.h"

namespace koopfast {

// What a block's rows E (m, n_b) are made of its snapshots: these, or their increments
// w_{t+1} - w_t with a last row of zeros or w_m. Increments and one state make all states.
enum class SnapshotRows : int { states = 0, increments = 1, increments_and_last = 2 };

// Snapshots S: one recorded state a row, contiguous rows, rows `row_stride` elements apart.
struct SnapshotView {
  const void* data;  // (m, n)
  ScalarType dtype;
  int64_t m;
  int64_t n;
  int64_t row_stride;  // >= n

  template <typename T>
  const T* row(int64_t t) const {
    return static_cast<const T*>(data) + t * row_stride;
  }
};

// Calls visit(T*) with a null pointer that carries the element type.
template <typename Visit>
void dispatch(ScalarType dtype, Visit&& visit) {
  switch (dtype) {
    case ScalarType::float32:
      return visit(static_cast<const float*>(nullptr));
    case ScalarType::float64:
      return visit(static_cast<const double*>(nullptr));
    case ScalarType::bfloat16:
      return visit(static_cast<const Bfloat16*>(nullptr));
    case ScalarType::float16:
      return visit(static_cast<const Float16*>(nullptr));
  }
}

}  // namespace koopfast
