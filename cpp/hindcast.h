// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "motion.h"
#include "operator_fit.h"
#include "reduced_operator.h"

namespace koopfast {

constexpr double kTrustedError = 0.5;

// What is fitted to a block, and how well that did in the hindcast. `trusted` is the number of
// recorded intervals up to which the error at each single one is at most kTrustedError.
struct Choice {
  FitOptions options;
  int64_t rank;
  double error;
  double trusted;
};

// Chooses the rank, and with it what options.chosen names, by predicting the rest of the window
// from its first half and from its first two thirds. Rank 0 (stand still, error 1) wins where no
// operator does better. The steps:
//   1. least squares of rank kFullRank over all averages and delays: the lowest score, the mean
//      logarithm of both errors plus kPenalty for each octave between them and those preferred;
//   2. with that average and these delays, other ranks, estimators, and states: only one whose
//      score is lower by kMargin takes its place.
// Most of the candidates' errors differ by chance: the preference and the margin keep chance out.
Choice hindcast(const Motion& motion, const BlockShape& shape, const FitOptions& options,
                int64_t capacity);

}  // namespace koopfast
