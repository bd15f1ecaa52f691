// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

namespace koopfast {

constexpr double kTrustedError = 0.5;

// The rank whose operator of the pairs `head` predicts the observables after them, `later` (rows,
// intervals), best, and its error: that of the displacement, relative to the displacement, over all
// of `later`. Rank 0 (stand still, error 1) wins where no operator does better. `trusted` is the
// number of intervals up to which the error at each single one is at most kTrustedError.
int64_t rank_by_hindcast(const Pairs& head, const Eigen::Ref<const Matrix>& later,
                         const BlockShape& shape, const FitOptions& options, int64_t limit,
                         double& error, double& trusted);

// Columns of `predicted` before the first with an error above kTrustedError.
double trusted_intervals(const Matrix& predicted, const Matrix& truth);

// Whether no eigenvalue lies outside the unit circle, judged by the norm of A^2, A^4, ... A^256:
// a fraction of what an eigenbasis costs. False where that does not tell.
bool certainly_stable(const Matrix& a);

}  // namespace koopfast
