// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "choice.h"
#include "reduced_lanes.h"

namespace koopfast {

// The window is split so many times.
constexpr size_t kSplits = 3;

// Displacements (s, tail) predicted from each head; without columns where there is no operator.
using Predictions = std::array<Matrix, kSplits>;

// Of so many snapshots the last half, quarter, ..., or all.
inline int64_t last_part(int64_t count, int64_t part) { return (count + part - 1) / part; }

// What has been seen of one block's candidates. The steps are those of choice.h.
class Search {
 public:
  // `block` and `given` outlive it; the latter with what is least surprising where it is to be
  // chosen.
  Search(const Subject& block, const FitOptions& given);

  bool moves() const;  // after every head
  const BlockShape& shape() const { return shape_; }
  int64_t capacity() const { return capacity_; }

  // What is fitted to the last part of a split's head.
  Observed observed(const FitOptions& options, size_t split, int64_t part);

  // What an operator predicts from the head of a split.
  Matrix predicted(const Reduced& fit, const FitOptions& options, size_t split) const;

  // A candidate with a handicap: the best for each number of delays is kept, the first of equals.
  void consider(const Member& member, double handicap, Predictions moved);

  // The mean of the best ones' predictions, weighted by the inverse of their error.
  void mix();

  bool is_good() const;                                         // nothing challenges the mean
  const FitOptions& best() const { return heaviest_.options; }  // of the heaviest in the mean

  // Whether this is better enough on the first split, and takes the mean's place if it is in all.
  bool may_win(const Matrix& first) const;
  void challenge(const Member& member, Predictions moved);

  Choice result() const;

 private:
  // A head of the window, and the displacements that follow it.
  struct Split {
    int64_t head;
    Matrix truth;  // (s, tail)
    double scale;
  };

  struct Candidate {
    Member member;
    double score;  // with its handicap
    Predictions moved;
  };

  double error_of(const Matrix& moved, size_t split) const;
  double log_error(const Matrix& moved, size_t split) const;
  double score(const Predictions& moved) const;

  const Motion& motion_;
  const BlockShape shape_;
  const int64_t capacity_;
  const FitOptions& given_;
  std::array<Split, kSplits> splits_;
  Matrix gram_;                  // inner products of the steps, once they have been asked for
  std::vector<Candidate> best_;  // for each number of delays, until they are mixed
  Member heaviest_;
  std::vector<Member> members_;
  Predictions mean_;
  double score_ = 0, bar_ = 0, first_bar_ = 0;  // bars: of all splits, and of the first
};

}  // namespace koopfast
