// SPDX-License-Identifier: BSD-3-Clause
#include "choice.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "lane_groups.h"
#include "rank_hindcast.h"
#include "reduced_lanes.h"
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

// The rank of the first step, where it is not given.
int64_t full_rank(const FitOptions& given) {
  const bool any = given.rank_rule == RankRule::hindcast;
  return any ? kFullRank : std::numeric_limits<int64_t>::max();
}

int64_t last_half(int64_t count) { return (count + 1) / 2; }

// A head of the window, and the displacements that follow it.
struct Split {
  int64_t head;
  Matrix truth;  // (s, tail)
  double scale;
};

// The displacements that an operator predicts for the snapshots after a head, (s, tail).
Matrix displaced(const Motion& motion, const Reduced& fit, const FitOptions& options,
                 const Split& split) {
  const int64_t k = fit.op.rows(), tail = split.truth.cols(), a = options.block_average;
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

constexpr size_t kSplits = std::size(kParts);
using Predictions = std::array<Matrix, kSplits>;  // a split each

struct Candidate {
  Member member;
  double score;  // and what its distance from the preferred groups and delays costs
  Predictions moved;
};

// What one block has seen of its candidates.
class Search {
 public:
  Search(const Subject& block, const FitOptions& given)
      : motion_(*block.motion), shape_(block.shape), capacity_(block.capacity), given_(given) {
    const int64_t m = snapshots(motion_);
    for (size_t i = 0; i < kSplits; ++i) {
      const int64_t head = m - std::max<int64_t>(1, (m - 1) / kParts[i]);
      splits_[i] = Split{head, displacements(motion_, head), 0};
      splits_[i].scale = splits_[i].truth.squaredNorm();
    }
  }

  bool moves() const {
    return std::all_of(splits_.begin(), splits_.end(), [](const Split& s) { return s.scale > 0; });
  }

  // What is fitted to the head of a split, or to its last half.
  Observed observed(const FitOptions& options, size_t split, bool half) {
    const int64_t head = splits_[split].head, count = half ? last_half(head) : head;
    Observed own{observe(motion_, head, count, options), Matrix()};
    const int64_t p = own.o.cols();
    if (!options.increments || own.o.rows() * kMostDelays <= p) return own;
    if (options.block_average > 1) {
      own.gram.noalias() = own.o.transpose() * own.o;
      return own;
    }
    if (gram_.size() == 0) gram_.noalias() = motion_.steps.transpose() * motion_.steps;
    own.gram = gram_.block(head - count, head - count, p, p);
    return own;
  }

  const BlockShape& shape() const { return shape_; }
  int64_t limit(int64_t rank) const { return std::min(rank, capacity_); }
  int64_t capacity() const { return capacity_; }
  const FitOptions& best_options() const { return best_[0].member.options; }

  // What an operator predicts from the head of a split; without columns where there is none.
  Matrix predicted(const Reduced& fit, const FitOptions& options, size_t split) const {
    if (fit.op.rows() == 0) return Matrix();
    return displaced(motion_, fit, options, splits_[split]);
  }

  // A candidate of as many delays as those that come next to it.
  void consider(const FitOptions& options, int64_t count, Predictions moved) {
    const double penalised = score(moved) + distance(options, count);
    const bool first = best_.empty() || best_.back().member.options.delays != options.delays;
    if (!first && !(penalised < best_.back().score)) return;
    if (first) best_.emplace_back();
    best_.back() = Candidate{Member{options, count, limit(full_rank(given_)), 0}, penalised, std::move(moved)};
  }

  // The mean of their predictions, weighted by the inverse of their error; the best one first.
  void mix() {
    std::stable_sort(best_.begin(), best_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.score < b.score; });
    // A mean has more directions than any of its operators, and it is of displacements.
    if (!given_.increments || given_.rank_rule != RankRule::hindcast) best_.resize(1);
    double sum = 0;
    for (Candidate& c : best_) sum += c.member.weight = std::exp(best_[0].score - c.score);
    for (Candidate& c : best_) c.member.weight /= sum;
    for (size_t i = 0; i < kSplits; ++i) {
      mean_[i] = Matrix::Zero(splits_[i].truth.rows(), splits_[i].truth.cols());
      for (const Candidate& c : best_)
        if (c.moved[i].size() > 0) mean_[i] += c.member.weight * c.moved[i];
    }
    score_ = score(mean_);
    for (const Candidate& c : best_) members_.push_back(c.member);
    bar_ = score_ - kMargin;
    first_bar_ = log_error(mean_[0], 0) - kMargin;
  }

  bool is_good() const { return score_ < std::log(kGoodError); }

  bool may_win(const Matrix& first) const { return log_error(first, 0) < first_bar_; }

  void challenge(const FitOptions& options, int64_t rank, Predictions moved) {
    const double own = score(moved);
    if (!(own < bar_)) return;
    score_ = bar_ = own;
    mean_ = std::move(moved);
    members_.assign(1, Member{options, snapshots(motion_), limit(rank), 1});
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
  double log_error(const Matrix& moved, size_t split) const {
    return std::log(std::max(error_of(moved, splits_[split]), kLeastError));
  }

  // Weighted mean logarithm of the errors.
  double score(const Predictions& moved) const {
    double sum = 0;
    for (size_t i = 0; i < kSplits; ++i) sum += kWeights[i] * log_error(moved[i], i);
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
  const BlockShape shape_;
  const int64_t capacity_;
  const FitOptions& given_;  // with what is least surprising where it is to be chosen
  std::array<Split, kSplits> splits_;
  Matrix gram_;  // inner products of the steps, once they have been asked for
  std::vector<Candidate> best_;
  std::vector<Member> members_;
  Predictions mean_;
  double score_ = 0, bar_ = 0, first_bar_ = 0;  // bars: of all splits, and of the first
};

using Searches = std::vector<Search*>;

// What operators of these options predict from the head of a split, a block each.
std::vector<Matrix> predicted_together(const Searches& blocks, const std::vector<Observed>& observed,
                                       const FitOptions& options, int64_t rank, size_t split) {
  std::vector<BlockShape> shapes;
  std::vector<int64_t> limits;
  for (const Search* block : blocks) {
    shapes.push_back(block->shape());
    limits.push_back(block->limit(rank));
  }
  std::vector<Reduced> fits = reduce_together(observed, shapes, options, limits);
  std::vector<Matrix> moved;
  for (size_t i = 0; i < blocks.size(); ++i) {
    Reduced& fit = fits[i];
    // What is judged is what will predict.
    if (options.unstable != Unstable::keep && fit.op.rows() > 0 && !certainly_stable(fit.op))
      move_to_unit_disc(fit.op, fit.image, options.unstable);
    moved.push_back(blocks[i]->predicted(fit, options, split));
  }
  return moved;
}

std::vector<Observed> observed_together(const Searches& blocks, const FitOptions& options,
                                        size_t split, bool half) {
  std::vector<Observed> observed;
  for (Search* block : blocks) observed.push_back(block->observed(options, split, half));
  return observed;
}

// Least squares of every number of delays, average and part of the window.
void choose_filters(const Searches& blocks, const FitOptions& given, int64_t m) {
  if (blocks.empty()) return;
  const std::vector<int64_t> delays = delay_counts(given);
  struct Tried {
    FitOptions options;
    int64_t count;
    std::vector<Predictions> moved;
  };
  std::vector<std::vector<Tried>> tried(delays.size());
  for (const bool half : {false, true}) {
    const int64_t count = half ? last_half(m) : m;
    for (const int64_t a : averages(count, half, given))
      for (size_t split = 0; split < kSplits; ++split) {
        FitOptions own = given;
        own.block_average = a;
        const std::vector<Observed> observed = observed_together(blocks, own, split, half);
        for (size_t i = 0; i < delays.size(); ++i) {
          own.delays = delays[i];
          if (count / a - (own.increments ? 1 : 0) < own.delays + 1) continue;  // not one pair
          if (split == 0) tried[i].push_back({own, count, std::vector<Predictions>(blocks.size())});
          std::vector<Matrix> moved =
              predicted_together(blocks, observed, own, full_rank(given), split);
          for (size_t b = 0; b < blocks.size(); ++b)
            tried[i].back().moved[b][split] = std::move(moved[b]);
        }
      }
  }
  for (std::vector<Tried>& same_delays : tried)
    for (Tried& one : same_delays)
      for (size_t b = 0; b < blocks.size(); ++b)
        blocks[b]->consider(one.options, one.count, std::move(one.moved[b]));
}

// States or another estimator, with the averages and delays of each block's best.
void challenge(const Searches& blocks, int64_t rank, const FitOptions& wanted) {
  const auto kind = [&](int64_t i) {
    const FitOptions& own = blocks[i]->best_options();
    return std::make_pair(own.delays, own.block_average);
  };
  const auto count = static_cast<int64_t>(blocks.size());
  const Groups groups = group_by(count, count, kind);
  for (int64_t g = 0; g < groups.count(); ++g) {
    Searches open;
    for (int64_t j = groups.first[g]; j < groups.first[g + 1]; ++j)
      open.push_back(blocks[groups.order[j]]);
    FitOptions own = wanted;
    std::tie(own.delays, own.block_average) = kind(groups.order[groups.first[g]]);
    std::vector<Predictions> seen(open.size());
    for (size_t split = 0; split < kSplits && !open.empty(); ++split) {
      std::vector<Matrix> moved = predicted_together(
          open, observed_together(open, own, split, false), own, rank, split);
      size_t left = 0;
      for (size_t i = 0; i < moved.size(); ++i) {
        if (split == 0 && !open[i]->may_win(moved[i])) continue;
        seen[i][split] = std::move(moved[i]);
        std::swap(seen[left], seen[i]);
        open[left++] = open[i];
      }
      open.resize(left);
    }
    for (size_t i = 0; i < open.size(); ++i) open[i]->challenge(own, rank, std::move(seen[i]));
  }
}

void challenge_all(const Searches& blocks, const FitOptions& given) {
  Searches open;
  for (Search* block : blocks)
    if (!block->is_good()) open.push_back(block);
  if (open.empty()) return;
  FitOptions own = given;
  if (given.chosen & chosen_estimator)
    for (const Estimator estimator : {Estimator::symmetric, Estimator::total_least_squares}) {
      own.estimator = estimator;
      challenge(open, full_rank(given), own);
    }
  if (!(given.chosen & chosen_observables)) return;
  own = given;
  own.increments = false;
  if (given.rank_rule != RankRule::hindcast) return challenge(open, full_rank(given), own);
  for (const int64_t rank : kRanksOfStates) {
    Searches large;
    for (Search* block : open)
      if (rank < 2 * block->capacity()) large.push_back(block);
    challenge(large, rank, own);
  }
}

}  // namespace

std::vector<Choice> choose(const std::vector<Subject>& blocks, const FitOptions& options) {
  std::vector<Choice> choices;
  if (blocks.empty()) return choices;
  FitOptions given = options;
  if (given.chosen & chosen_observables) given.increments = true;
  const int64_t m = snapshots(*blocks[0].motion),
                needed = given.block_average * (given.delays + (given.increments ? 2 : 1));
  const double none = std::numeric_limits<double>::quiet_NaN();
  for (const Subject& block : blocks)
    choices.push_back({{{given, m, block.capacity, 1}}, none, none});
  // Two more pairs than a fit needs, or there is nothing to fit before and compare after.
  if (m < needed + 2) return choices;
  const FitOptions plain = given;
  if (given.chosen & chosen_estimator) given.estimator = Estimator::least_squares;
  std::vector<Search> searches;
  Searches moving;
  for (const Subject& block : blocks) searches.emplace_back(block, given);
  for (size_t i = 0; i < blocks.size(); ++i)
    if (searches[i].moves())
      moving.push_back(&searches[i]);
    else
      choices[i] = {{{plain, m, 0, 1}}, 1, 0};
  if (moving.empty()) return choices;
  choose_filters(moving, given, m);
  for (Search* block : moving) block->mix();
  challenge_all(moving, given);
  for (size_t i = 0; i < blocks.size(); ++i)
    if (searches[i].moves()) choices[i] = searches[i].result();
  return choices;
}

}  // namespace koopfast
