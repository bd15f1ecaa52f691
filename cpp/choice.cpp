// SPDX-License-Identifier: BSD-3-Clause
#include "choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "rank_hindcast.h"
#include "solvers/solvers.h"

namespace koopfast {
namespace {

constexpr int64_t kFullRank = 16;
constexpr int64_t kOtherRanks[] = {1, 2, 4, 8, 64};
constexpr int64_t kRanksOfEstimators[] = {8, 16}, kRanksOfStates[] = {2, 4, 8};
constexpr int64_t kMostDelays = 8, kPreferredDelays = 8;
// A window is divided into this many groups, whatever its snapshots' number.
constexpr int64_t kMostGroups = 128, kLeastGroups = 10, kPreferredGroups = 32;
constexpr double kPenalty = 0.1, kMargin = 0.3;
// What the later split counts: it sees more of the window, and the dynamics of its end.
constexpr double kRecentWeight = 2.0 / 3;
// Smaller errors are rounding: no reason to prefer one operator to another.
constexpr double kLeastError = 1e-6, kMostError = 1e3;

// A head of the window, and the displacements that follow it.
struct Split {
  int64_t head;
  Matrix truth;  // (s, tail)
  double scale;
  double weight;
};

// The displacements that an operator of `rank` predicts for the snapshots after a head, (s, tail);
// without columns where there is no such operator.
Matrix predicted(const Motion& motion, const BlockShape& shape, const FitOptions& options,
                 int64_t rank, const Split& split) {
  const Matrix o = observe(motion, split.head, options);
  if (o.cols() < options.delays + 1) return Matrix();
  const Matrix h = embed(o, options.delays);
  Reduced fit = reduce(h, shape, options, rank);
  const int64_t k = fit.op.rows(), tail = split.truth.cols(), a = options.block_average;
  if (k == 0) return Matrix();
  // What is judged is what will predict.
  if (options.unstable != Unstable::keep && !certainly_stable(fit.op))
    move_to_unit_disc(fit.op, fit.image, options.unstable);
  // f_T(A) z for T = 0, 1, 2, ... groups; in between linear.
  const auto groups = static_cast<int64_t>(in_groups(static_cast<double>(tail), a)) + 2;
  Matrix y = Matrix::Zero(k, groups + 1);
  y.col(1) = fit.start;
  for (int64_t t = 2; t <= groups; ++t) y.col(t).noalias() = fit.op * y.col(t - 1);
  if (options.increments)
    for (int64_t t = 2; t <= groups; ++t) y.col(t) += y.col(t - 1);
  Matrix between(k, tail);
  Vector now_share = Vector::Ones(tail);
  for (int64_t t = 0; t < tail; ++t) {
    const double horizon = in_groups(static_cast<double>(t + 1), a), low = std::floor(horizon);
    const auto i = static_cast<int64_t>(low);
    between.col(t) = (1 - (horizon - low)) * y.col(i) + (horizon - low) * y.col(i + 1);
    if (!options.increments) now_share(t) = std::max(0.0, 1 - horizon);
  }
  Matrix moved = fit.image * between;
  if (a > 1) moved += origin(motion, split.head, a) * now_share.transpose();
  if (!options.increments)
    moved -= motion.states.col(split.head - 1) * (Vector::Ones(tail) - now_share).transpose();
  return moved;
}

// Error of the predicted displacements relative to the true ones; as bad as standing still where
// nothing is predicted.
double error_of(const Matrix& predicted, const Split& split) {
  if (predicted.size() == 0) return 1;
  const double error = std::sqrt((predicted - split.truth).squaredNorm() / split.scale);
  return error < kMostError ? error : kMostError;  // a NaN compares false
}

double octaves(int64_t value, int64_t preferred) {
  return std::abs(std::log2(static_cast<double>(value) / static_cast<double>(preferred)));
}

std::vector<int64_t> averages(int64_t m, const FitOptions& options) {
  if (!(options.chosen & chosen_average)) return {options.block_average};
  int64_t a = 1;
  while (m / a > kMostGroups) a *= 2;
  std::vector<int64_t> result{a};
  while (m / (a *= 2) >= kLeastGroups) result.push_back(a);
  return result;
}

std::vector<int64_t> delay_counts(const FitOptions& options) {
  if (!(options.chosen & chosen_delays)) return {options.delays};
  std::vector<int64_t> result;
  for (int64_t q = 1; q <= kMostDelays; q *= 2) result.push_back(q);
  return result;
}

class Search {
 public:
  Search(const Motion& motion, const BlockShape& shape, const FitOptions& options, int64_t capacity)
      : motion_(motion),
        shape_(shape),
        capacity_(capacity),
        m_(snapshots(motion)),
        full_(capacity) {
    for (const int64_t part : {2, 3}) {
      const int64_t head = m_ - std::max<int64_t>(1, (m_ - 1) / part);
      Split split{head, displacements(motion, head), 0,
                  part == 3 ? kRecentWeight : 1 - kRecentWeight};
      split.scale = split.truth.squaredNorm();
      splits_.push_back(std::move(split));
    }
    best_ = {options, capacity, 1, 0};
    if (options.rank_rule == RankRule::hindcast) full_ = std::min(kFullRank, capacity);
  }

  bool moves() const { return splits_[0].scale > 0 && splits_[1].scale > 0; }

  // Weighted mean logarithm of the errors of a candidate.
  double score(const FitOptions& options, int64_t rank) const {
    double sum = 0;
    for (const Split& split : splits_) {
      const Matrix moved = predicted(motion_, shape_, options, std::min(rank, capacity_), split);
      sum += split.weight * std::log(std::max(error_of(moved, split), kLeastError));
    }
    return sum;
  }

  void choose_filter() {
    double lowest = std::numeric_limits<double>::infinity();
    FitOptions own = best_.options;
    if (own.chosen & chosen_observables) own.increments = true;
    if (own.chosen & chosen_estimator) own.estimator = Estimator::least_squares;
    const FitOptions given = own;
    for (const int64_t a : averages(m_, given))
      for (const int64_t q : delay_counts(given)) {
        own.block_average = a;
        own.delays = q;
        if (m_ / a - (own.increments ? 1 : 0) < q + 1) continue;  // not one pair
        const double plain = score(own, full_);
        double penalised = plain;
        if (given.chosen & chosen_average)
          penalised += kPenalty * octaves(m_ / a, kPreferredGroups);
        if (given.chosen & chosen_delays) penalised += kPenalty * octaves(q, kPreferredDelays);
        if (penalised < lowest) {
          lowest = penalised;
          score_ = plain;
          best_.options = own;
          best_.rank = full_;
        }
      }
    bar_ = score_ - kMargin;
  }

  void challenge(const FitOptions& options, int64_t rank) {
    const double own = score(options, rank);
    if (!(own < bar_)) return;
    bar_ = score_ = own;
    best_.options = options;
    best_.rank = std::min(rank, capacity_);
  }

  void challenge_filter() {
    const FitOptions base = best_.options;
    const bool any_rank = base.rank_rule == RankRule::hindcast;
    if (any_rank) challenge_with(base, kOtherRanks);
    if (base.chosen & chosen_estimator)
      for (const Estimator estimator :
           {Estimator::symmetric, Estimator::total_least_squares, Estimator::forward_backward}) {
        if (estimator == Estimator::forward_backward && base.ridge > 0) continue;
        FitOptions own = base;
        own.estimator = estimator;
        any_rank ? challenge_with(own, kRanksOfEstimators) : challenge(own, capacity_);
      }
    if (!(base.chosen & chosen_observables)) return;
    FitOptions own = base;
    own.increments = false;
    any_rank ? challenge_with(own, kRanksOfStates) : challenge(own, capacity_);
  }

  template <size_t count>
  void challenge_with(const FitOptions& options, const int64_t (&ranks)[count]) {
    for (const int64_t rank : ranks)
      if (rank < 2 * capacity_) challenge(options, rank);
  }

  Choice result() {
    const Split& last = splits_.back();
    if (score_ < 0) {
      const Matrix moved = predicted(motion_, shape_, best_.options, best_.rank, last);
      best_.error = error_of(moved, last);
      if (moved.size() > 0) best_.trusted = trusted_intervals(moved, last.truth);
    } else {
      best_.rank = 0;
    }
    return best_;
  }

 private:
  const Motion& motion_;
  const BlockShape& shape_;
  const int64_t capacity_, m_;
  int64_t full_;  // the rank of step 1
  std::vector<Split> splits_;
  Choice best_;
  double score_ = std::numeric_limits<double>::infinity();
  double bar_ = score_;
};

}  // namespace

Choice choose(const Motion& motion, const BlockShape& shape, const FitOptions& options,
              int64_t capacity) {
  FitOptions plain = options;
  if (plain.chosen & chosen_observables) plain.increments = true;
  const int64_t needed = plain.block_average * (plain.delays + (plain.increments ? 2 : 1));
  // Two more pairs than a fit needs, or there is nothing to fit before and compare after.
  if (snapshots(motion) < needed + 2) {
    const double none = std::numeric_limits<double>::quiet_NaN();
    return {plain, capacity, none, none};
  }
  Search search(motion, shape, options, capacity);
  if (!search.moves()) return {plain, 0, 1, 0};
  search.choose_filter();
  search.challenge_filter();
  return search.result();
}

}  // namespace koopfast
