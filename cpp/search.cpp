// SPDX-License-Identifier: BSD-3-Clause
#include "search.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "rank_hindcast.h"

namespace koopfast {
namespace {

// What a challenger must gain, and the error below which nothing is challenged.
constexpr double kMargin = 1, kGoodError = 0.1;
// The last 1 / kParts[i] of the window is predicted, and what that error counts.
constexpr int64_t kParts[kSplits] = {2, 3, 6};
constexpr double kWeights[kSplits] = {0.3, 0.4, 0.3};
constexpr size_t kReported = 1;
// Smaller errors are rounding: no reason to prefer one operator to another.
constexpr double kLeastError = 1e-6, kMostError = 1e3;

}  // namespace

Search::Search(const Subject& block, const FitOptions& given)
    : motion_(*block.motion),
      shape_(block.shape),
      capacity_(block.capacity),
      given_(given),
      heaviest_{given, 0, 0, 0} {
  const int64_t m = snapshots(motion_);
  for (size_t i = 0; i < kSplits; ++i) {
    const int64_t head = m - std::max<int64_t>(1, (m - 1) / kParts[i]);
    splits_[i] = Split{head, displacements(motion_, head), 0};
    splits_[i].scale = splits_[i].truth.squaredNorm();
  }
}

bool Search::moves() const {
  return std::all_of(splits_.begin(), splits_.end(), [](const Split& s) { return s.scale > 0; });
}

Observed Search::observed(const FitOptions& options, size_t split, int64_t part) {
  const int64_t head = splits_[split].head, count = last_part(head, part);
  Observed own{observe(motion_, head, count, options), Matrix()};
  // The numbers of delays share the inner products, and the parts of the window those of single
  // steps. With fewer weights than that, hardly any fit asks for them.
  const int64_t p = own.o.cols();
  if (!options.increments || 4 * own.o.rows() < p) return own;
  if (options.block_average > 1) {
    own.gram.noalias() = own.o.transpose() * own.o;
    return own;
  }
  if (gram_.size() == 0) gram_.noalias() = motion_.steps.transpose() * motion_.steps;
  own.gram = gram_.block(head - count, head - count, p, p);
  return own;
}

Matrix Search::predicted(const Reduced& fit, const FitOptions& options, size_t split) const {
  const auto& [head, truth, scale] = splits_[split];
  const int64_t k = fit.op.rows(), tail = truth.cols(), a = options.block_average;
  if (k == 0) return Matrix();
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
  if (a > 1) moved += origin(motion_, head, a) * now_share.transpose();
  if (!options.increments)
    moved -= motion_.states.col(head - 1) * (Vector::Ones(tail) - now_share).transpose();
  return moved;
}

double Search::error_of(const Matrix& moved, size_t split) const {
  if (moved.size() == 0) return 1;  // as bad as standing still
  const Split& own = splits_[split];
  const double error = std::sqrt((moved - own.truth).squaredNorm() / own.scale);
  return error < kMostError ? error : kMostError;  // a NaN compares false
}

double Search::log_error(const Matrix& moved, size_t split) const {
  return std::log(std::max(error_of(moved, split), kLeastError));
}

double Search::score(const Predictions& moved) const {
  double sum = 0;
  for (size_t i = 0; i < kSplits; ++i) sum += kWeights[i] * log_error(moved[i], i);
  return sum;
}

void Search::consider(const Member& member, double handicap, Predictions moved) {
  const double own = score(moved) + handicap;
  auto best = std::find_if(best_.begin(), best_.end(), [&](const Candidate& c) {
    return c.member.options.delays == member.options.delays;
  });
  if (best == best_.end())
    best_.push_back({member, own, std::move(moved)});
  else if (own < best->score)
    *best = {member, own, std::move(moved)};
}

void Search::mix() {
  std::stable_sort(best_.begin(), best_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
  // A mean has more directions than any of its operators, and it is of displacements.
  if (!given_.increments || given_.rank_rule != RankRule::hindcast) best_.resize(1);
  double sum = 0;
  for (Candidate& c : best_) sum += c.member.weight = std::exp(-c.score);
  for (size_t i = 0; i < kSplits; ++i) {
    mean_[i] = Matrix::Zero(splits_[i].truth.rows(), splits_[i].truth.cols());
    for (const Candidate& c : best_)
      if (c.moved[i].size() > 0) mean_[i] += c.member.weight / sum * c.moved[i];
  }
  for (const Candidate& c : best_) members_.push_back(c.member);
  heaviest_ = members_[0];
  best_.clear();
  score_ = score(mean_);
  bar_ = score_ - kMargin;
  first_bar_ = log_error(mean_[0], 0) - kMargin;
}

bool Search::is_good() const { return score_ < std::log(kGoodError); }

bool Search::may_win(const Matrix& first) const { return log_error(first, 0) < first_bar_; }

void Search::challenge(const Member& member, Predictions moved) {
  const double own = score(moved);
  if (!(own < bar_)) return;
  score_ = bar_ = own;
  mean_ = std::move(moved);
  members_.assign(1, member);
}

Choice Search::result() const {
  if (!(score_ < 0)) return {{{heaviest_.options, heaviest_.snapshots, 0, 1}}, 1, 0};
  const Matrix &moved = mean_[kReported], &truth = splits_[kReported].truth;
  return {members_, error_of(moved, kReported),
          moved.size() > 0 ? trusted_intervals(moved, truth) : 0};
}

}  // namespace koopfast
