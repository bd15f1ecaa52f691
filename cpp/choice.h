// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "motion.h"
#include "operator_fit.h"
#include "reduced_operator.h"

namespace koopfast {

// What is fitted to a block, and how well that did in the hindcast: `error` and `trusted` as
// hindcast.h has them, of the window's last third.
struct Choice {
  FitOptions options;
  int64_t rank;
  double error;
  double trusted;
};

// Chooses what options.chosen names, and with it the rank, by predicting the rest of the window
// from its first half and from its first two thirds. Rank 0 (stand still, error 1) wins where no
// operator does better. The steps:
//   1. least squares of rank kFullRank over all averages and delays: the lowest score, the mean
//      logarithm of both errors (the second counts double) plus kPenalty for each octave between
//      them and those preferred;
//   2. with that average and these delays, other ranks, estimators, and states: only one whose
//      score is lower by kMargin takes its place.
// Most of the candidates' errors differ by chance: the preference and the margin keep chance out.
Choice choose(const Motion& motion, const BlockShape& shape, const FitOptions& options,
              int64_t capacity);

}  // namespace koopfast
