// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "lane_kernels.h"
#include "operator_fit.h"

namespace koopfast {

// What operator_lanes.h fits: of a primal block G = F F^T and C = F' F^T, of a dual one G = F^T F
// and C = F^T F'.
struct SmallForm {
  BlockForm form;
  const double* square;   // (order, order) G
  const double* crossed;  // (order, order) C
  int64_t ld;             // of both
  const double* latest;   // (order,) h_{p+1}, or F^T h_{p+1}
  int64_t latest_stride;
  int64_t order;    // d, or p
  int64_t weights;  // n_b
};

// Fits up to eight forms of one order and form; results[l] is where those of forms[l] go. `m`
// counts the snapshots (dual) that coefficients stand for.
void fit_small_forms(const SmallForm* forms, const int64_t* results, int64_t count, int64_t pairs,
                     int64_t m, const FitOptions& options, const OperatorArrays& out);

}  // namespace koopfast
