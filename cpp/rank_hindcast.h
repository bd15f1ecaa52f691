// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "hindcast.h"
#include "operator_fit.h"
#include "reduced_operator.h"

namespace koopfast {

// The rank whose operator of the pairs `head` predicts the observables after them, `later` (rows,
// intervals), best, and its error: that of the displacement, relative to the displacement, over all
// of `later`. Rank 0 (stand still, error 1) wins where no operator does better. `trusted` is the
// number of intervals up to which the error at each single one is at most kTrustedError.
int64_t rank_by_hindcast(const Pairs& head, const Eigen::Ref<const Matrix>& later,
                         const BlockShape& shape, const FitOptions& options, int64_t limit,
                         double& error, double& trusted);

}  // namespace koopfast
