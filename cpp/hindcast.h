// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

namespace koopfast {

constexpr double kTrustedError = 0.5;

// The rank that predicts the last third of the window best from the first two thirds, and its
// error: that of the displacement, relative to the displacement, over all predicted snapshots.
// Rank 0 (stand still, error 1) wins where no operator does better. `trusted` is the number of
// recorded intervals up to which the error at each single one is at most kTrustedError.
int64_t hindcast(const Matrix& h, const BlockShape& shape, const FitOptions& options, int64_t limit,
                 double& error, double& trusted);

// Columns of `predicted` before the first with an error above kTrustedError.
double trusted_intervals(const Matrix& predicted, const Matrix& truth);

// Whether no eigenvalue lies outside the unit circle, judged by the norm of A^2, A^4, ... A^256:
// a fraction of what an eigenbasis costs. False where that does not tell.
bool certainly_stable(Matrix power);

}  // namespace koopfast
