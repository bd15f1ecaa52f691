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

// What is to be made of forms, and where it goes. `m` counts the snapshots that coefficients stand
// for (dual).
struct FitRequest {
  int64_t pairs, m;
  const FitOptions& options;
  const OperatorArrays& out;
};

// A power of two that brings the largest entry of a positive semidefinite G (order, order), which
// is on its diagonal, to between 1/2 and 1; entries are `step` doubles apart.
double power_of_two_scale(const double* g, int64_t order, int64_t step = 1);

class LaneMoments;

// Up to eight forms of one order and kind side by side, scaled; or one alone, with one lane.
struct LaneForms {
  LaneForms(const SmallForm* forms, int64_t count, int lanes);
  // Primal ones of `weights` weights and `delays` delays.
  LaneForms(const LaneMoments& moments, int64_t count, int64_t weights, int64_t delays);
  // One of them alone.
  LaneForms(const LaneForms& forms, int lane);

  bool dual() const { return form == BlockForm::dual; }
  unsigned all() const { return (1u << count) - 1; }  // lanes in use
  bool is_finite(int lane) const { return finite >> lane & 1u; }

  BlockForm form;
  int count, lanes, order;
  int64_t weights[kLaneCount];  // n_b
  unsigned finite;              // the lanes; in the others there are zeros
  double scale[kLaneCount];     // of `square` and `crossed`; of `latest` in the dual form
  LaneArray square, crossed, latest;

 private:
  void rescale();
};

}  // namespace koopfast
