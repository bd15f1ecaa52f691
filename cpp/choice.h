// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <vector>

#include "motion.h"
#include "operator_fit.h"
#include "reduced_operator.h"

namespace koopfast {

// An operator fitted to the last `snapshots` of a window, and what its prediction counts; of those
// chosen for a mean, the inverse of its error.
struct Member {
  FitOptions options;
  int64_t snapshots;
  int64_t rank;
  double weight;
};

// What is fitted to a block, heaviest first, and how well that did in the hindcast: `error` and
// `trusted` as hindcast.h has them, of the window's last third.
struct Choice {
  std::vector<Member> members;
  double error;
  double trusted;
};

// A block, and the most directions that it may get.
struct Subject {
  const Motion* motion;
  BlockShape shape;
  int64_t capacity;
};

// Chooses what options.chosen names, and with it the rank, by predicting the rest of the window
// from its first half, two thirds and five sixths. The score of an operator is the mean logarithm
// of the three errors. Rank 0 (stand still, error 1) wins where nothing does better. The steps:
//   1. least squares of rank kFullRank: for every number of delays, the average and the part of the
//      window (all, its last half, of a long one its last quarter) of the lowest score, plus
//      kPenalty for each octave between groups and delays and those preferred;
//   2. the mean of these predictions, weighted by exp(-score), that is, by the inverse error (to
//      which the fit to all of the window adds what bounding its modes changes);
//   3. where the mean's error is above kGoodError, states and other estimators with the best one's
//      average and delays: only one whose score is lower by kMargin takes its place, alone. One
//      that is not as much better on the first split is not fitted to the others.
// Candidates' errors differ by chance, and so do their predictions: the mean has less of it than
// any one of them, and costs no more to apply.
//
// For several blocks of one window, whose candidates are fitted together. What is chosen for one
// depends on no other.
std::vector<Choice> choose(const std::vector<Subject>& blocks, const FitOptions& options);

}  // namespace koopfast
