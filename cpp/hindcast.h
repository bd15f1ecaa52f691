// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

namespace koopfast {

// The rank that predicts the last third of the window best from the first two thirds, and its
// error: that of the displacement, relative to the displacement, over all predicted snapshots.
// Rank 0 (stand still, error 1) wins where no operator does better. `trusted` is the number of
// recorded intervals up to which the error at each single one is at most kTrustedError.
int64_t hindcast(const Matrix& h, const BlockShape& shape, const FitOptions& options, int64_t limit,
                 double& error, double& trusted);

}  // namespace koopfast
