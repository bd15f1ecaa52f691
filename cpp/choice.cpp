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
constexpr int64_t kRanksOfStates[] = {2, 4, 8};
constexpr int64_t kMostDelays = 8, kPreferredDelays = 8;
// A window is divided into this many groups, whatever its snapshots' number.
constexpr int64_t kMostGroups = 128, kLeastGroups = 16;
constexpr double kPreferredGroups = 32, kPenalty = 0.1;
// What a challenger must gain, and the error below which nothing is challenged.
constexpr double kMargin = 1, kGoodError = 0.1;
// The last 1 / kParts[i] of the window is predicted, and what that error counts.
constexpr int64_t kParts[] = {2, 3, 6};
constexpr double kWeights[] = {0.3, 0.4, 0.3};
constexpr size_t kReported = 1;
// Smaller errors are rounding: no reason to prefer one operator to another.
constexpr double kLeastError = 1e-6, kMostError = 1e3;

int64_t last_half(int64_t count) { return (count + 1) / 2; }

// A head of the window, and the displacements that follow it.
struct Split {
  int64_t head;
  Matrix truth;  // (s, tail)
  double scale;
};

// The displacements that an operator predicts for the snapshots after a head, (s, tail), fitted to
// all of the head or to its last half; without columns where there is no such operator.
Matrix predicted(const Motion& motion, const BlockShape& shape, const FitOptions& options,
                 int64_t rank, bool half, const Split& split) {
  const Matrix o = observe(motion, split.head, half ? last_half(split.head) : split.head, options);
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

double octaves(double value, double preferred) { return std::abs(std::log2(value / preferred)); }

// Lengths of groups for a window, or for its last half of so many snapshots.
std::vector<int64_t> averages(int64_t count, bool half, const FitOptions& options) {
  std::vector<int64_t> result;
  if (!(options.chosen & chosen_average)) {
    if (!half) result.push_back(options.block_average);
    return result;
  }
  int64_t a = 1;
  while (count / a > kMostGroups) a *= 2;
  for (; count / a >= kLeastGroups || (result.empty() && !half); a *= 2) result.push_back(a);
  return result;
}

std::vector<int64_t> delay_counts(const FitOptions& options) {
  std::vector<int64_t> result;
  if (!(options.chosen & chosen_delays)) {
    result.push_back(options.delays);
    return result;
  }
  for (int64_t q = 1; q <= kMostDelays; q *= 2) result.push_back(q);
  return result;
}

using Predictions = std::vector<Matrix>;  // a split each

struct Candidate {
  Member member;
  double score;  // and what its distance from the preferred groups and delays costs
  Predictions moved;
};

class Search {
 public:
  Search(const Motion& motion, const BlockShape& shape, const FitOptions& options, int64_t capacity)
      : motion_(motion), shape_(shape), given_(options), capacity_(capacity) {
    for (const int64_t part : kParts) {
      const int64_t m = snapshots(motion), head = m - std::max<int64_t>(1, (m - 1) / part);
      Split split{head, displacements(motion, head), 0};
      split.scale = split.truth.squaredNorm();
      splits_.push_back(std::move(split));
    }
    if (given_.chosen & chosen_observables) given_.increments = true;
    if (given_.chosen & chosen_estimator) given_.estimator = Estimator::least_squares;
    full_ = any_rank() ? std::min(kFullRank, capacity) : capacity;
  }

  bool moves() const {
    return std::all_of(splits_.begin(), splits_.end(), [](const Split& s) { return s.scale > 0; });
  }

  // The best candidate for every number of delays, the best of all first.
  void choose_filters() {
    for (const int64_t q : delay_counts(given_)) {
      Candidate best;
      best.score = std::numeric_limits<double>::infinity();
      for (const bool half : {false, true}) {
        const int64_t m = snapshots(motion_), count = half ? last_half(m) : m;
        for (const int64_t a : averages(count, half, given_)) {
          if (count / a - (given_.increments ? 1 : 0) < q + 1) continue;  // not one pair
          FitOptions own = given_;
          own.delays = q;
          own.block_average = a;
          Predictions moved = predictions(own, full_, half);
          const double penalised = score(moved) + distance(own, count);
          if (penalised < best.score)
            best = Candidate{Member{own, count, full_, 0}, penalised, std::move(moved)};
        }
      }
      if (!best.moved.empty()) best_.push_back(std::move(best));
    }
    std::stable_sort(best_.begin(), best_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
  }

  // The mean of their predictions, weighted by the inverse of their error.
  void mix() {
    // A mean has more directions than any of its operators, and it is of displacements.
    if (!given_.increments || !any_rank()) best_.resize(1);
    double sum = 0;
    for (Candidate& c : best_) sum += c.member.weight = std::exp(best_[0].score - c.score);
    for (Candidate& c : best_) c.member.weight /= sum;
    for (size_t i = 0; i < splits_.size(); ++i) {
      Matrix mean = Matrix::Zero(splits_[i].truth.rows(), splits_[i].truth.cols());
      for (const Candidate& c : best_)
        if (c.moved[i].size() > 0) mean += c.member.weight * c.moved[i];
      mean_.push_back(std::move(mean));
    }
    score_ = score(mean_);
    for (const Candidate& c : best_) members_.push_back(c.member);
  }

  void challenge(const FitOptions& options, int64_t rank) {
    const int64_t most = std::min(rank, capacity_);
    Predictions moved;
    for (const Split& split : splits_) {
      moved.push_back(predicted(motion_, shape_, options, most, false, split));
      if (moved.size() == 1 && !(log_error(moved[0], split) < first_bar_)) return;
    }
    const double own = score(moved);
    if (!(own < bar_)) return;
    score_ = bar_ = own;
    mean_ = std::move(moved);
    members_.assign(1, Member{options, snapshots(motion_), std::min(rank, capacity_), 1});
  }

  // States and other estimators, with what is best for least squares of increments.
  void challenge_all() {
    if (score_ < std::log(kGoodError)) return;
    bar_ = score_ - kMargin;
    first_bar_ = log_error(mean_[0], splits_[0]) - kMargin;
    const FitOptions base = best_[0].member.options;
    if (base.chosen & chosen_estimator)
      for (const Estimator estimator : {Estimator::symmetric, Estimator::total_least_squares}) {
        FitOptions own = base;
        own.estimator = estimator;
        challenge(own, full_);
      }
    if (!(base.chosen & chosen_observables)) return;
    FitOptions own = base;
    own.increments = false;
    if (!any_rank()) return challenge(own, capacity_);
    for (const int64_t rank : kRanksOfStates)
      if (rank < 2 * capacity_) challenge(own, rank);
  }

  Choice result() const {
    if (!(score_ < 0)) {
      Member still = best_[0].member;
      still.rank = 0;
      still.weight = 1;
      return {{still}, 1, 0};
    }
    const Split& split = splits_[kReported];
    const Matrix& moved = mean_[kReported];
    return {members_, error_of(moved, split),
            moved.size() > 0 ? trusted_intervals(moved, split.truth) : 0};
  }

 private:
  bool any_rank() const { return given_.rank_rule == RankRule::hindcast; }

  Predictions predictions(const FitOptions& options, int64_t rank, bool half) const {
    Predictions moved;
    for (const Split& split : splits_)
      moved.push_back(predicted(motion_, shape_, options, std::min(rank, capacity_), half, split));
    return moved;
  }

  static double log_error(const Matrix& moved, const Split& split) {
    return std::log(std::max(error_of(moved, split), kLeastError));
  }

  // Weighted mean logarithm of the errors.
  double score(const Predictions& moved) const {
    double sum = 0;
    for (size_t i = 0; i < splits_.size(); ++i)
      sum += kWeights[i] * log_error(moved[i], splits_[i]);
    return sum;
  }

  double distance(const FitOptions& own, int64_t count) const {
    double far = 0;
    const auto groups = static_cast<double>(count) / static_cast<double>(own.block_average);
    if (own.chosen & chosen_average) far += octaves(groups, kPreferredGroups);
    if (own.chosen & chosen_delays)
      far += octaves(static_cast<double>(own.delays), kPreferredDelays);
    return kPenalty * far;
  }

  const Motion& motion_;
  const BlockShape& shape_;
  FitOptions given_;  // with what is least surprising where it is to be chosen
  const int64_t capacity_;
  int64_t full_;  // the rank of the first step
  std::vector<Split> splits_;
  std::vector<Candidate> best_;
  std::vector<Member> members_;
  Predictions mean_;
  double score_ = 0, bar_ = 0, first_bar_ = 0;  // to be undercut: of all splits, and of the first
};

}  // namespace

Choice choose(const Motion& motion, const BlockShape& shape, const FitOptions& options,
              int64_t capacity) {
  FitOptions plain = options;
  if (plain.chosen & chosen_observables) plain.increments = true;
  const int64_t m = snapshots(motion),
                needed = plain.block_average * (plain.delays + (plain.increments ? 2 : 1));
  // Two more pairs than a fit needs, or there is nothing to fit before and compare after.
  if (m < needed + 2) {
    const double none = std::numeric_limits<double>::quiet_NaN();
    return {{{plain, m, capacity, 1}}, none, none};
  }
  Search search(motion, shape, options, capacity);
  if (!search.moves()) return {{{plain, m, 0, 1}}, 1, 0};
  search.choose_filters();
  search.mix();
  search.challenge_all();
  return search.result();
}

}  // namespace koopfast
