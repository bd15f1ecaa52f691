// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "solvers/solvers.h"

namespace koopfast {

// A block's recorded motion in coordinates: those of its form, s of them. Increments are kept as
// such, since a state is a thousand times larger; what is not needed is left empty.
struct Motion {
  Matrix steps;   // (s, m - 1) w_{t+1} - w_t
  Matrix states;  // (s, m) w_t
};

int64_t snapshots(const Motion& motion);

// The observables o_t of the `count` snapshots before the one at `end` as columns, as
// options.increments and options.block_average say. Groups are counted from the last snapshot back;
// the oldest ones that fill no group are left out.
Matrix observe(const Motion& motion, int64_t end, int64_t count, const FitOptions& options);

// h_t = [o_t, o_{t-1}, ...]: (s q, P - q + 1), the newest observable on top.
Matrix embed(const Matrix& o, int64_t delays);

// Displacements w_t - w_{end-1} of the snapshots from `end` on, as columns.
Matrix displacements(const Motion& motion, int64_t end);

// Mean of the last group of the first `end` snapshots, less the last of them: (s,).
Vector origin(const Motion& motion, int64_t end, int64_t average);

// Groups that the mean of the last one must advance to be at `horizon` recorded intervals after the
// last snapshot: the mean stands for the middle of its group.
inline double in_groups(double horizon, int64_t average) {
  const auto a = static_cast<double>(average);
  return (horizon + (a - 1) / 2) / a;
}

}  // namespace koopfast
