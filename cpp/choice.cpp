// SPDX-License-Identifier: BSD-3-Clause
#include "choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "eigen_lanes.h"
#include "lane_groups.h"
#include "reduced_lanes.h"
#include "search.h"
#include "solvers/solvers.h"

namespace koopfast {
namespace {

constexpr int64_t kFullRank = 16;
constexpr int64_t kRanksOfStates[] = {2, 4, 8};
constexpr int64_t kMostDelays = 8, kPreferredDelays = 8;
// A window is divided into this many groups, whatever its snapshots' number.
constexpr int64_t kMostGroups = 128, kLeastGroups = 16;
constexpr double kPreferredGroups = 32, kPenalty = 0.1;
// What is fitted to: all of a window, its last half, its last quarter; the quarter where it has so
// many snapshots, and that of the first head half of them.
constexpr int64_t kWindowParts[] = {1, 2, 4}, kLeastQuarter = 64;

// The rank of the first step, where it is not given.
int64_t full_rank(const FitOptions& given) {
  const bool any = given.rank_rule == RankRule::hindcast;
  return any ? kFullRank : std::numeric_limits<int64_t>::max();
}

// What a candidate is handicapped by.
double handicap(const FitOptions& own, int64_t count) {
  const auto octaves = [](double value, double preferred) {
    return std::abs(std::log2(value / preferred));
  };
  double far = 0;
  const auto groups = static_cast<double>(count) / static_cast<double>(own.block_average);
  if (own.chosen & chosen_average) far += octaves(groups, kPreferredGroups);
  if (own.chosen & chosen_delays) far += octaves(static_cast<double>(own.delays), kPreferredDelays);
  return kPenalty * far;
}

// Lengths of groups for a window, or for a last part of it of so many snapshots.
std::vector<int64_t> averages(int64_t count, int64_t part, const FitOptions& options) {
  std::vector<int64_t> result;
  if (!(options.chosen & chosen_average)) {
    if (part == 1) result.push_back(options.block_average);
    return result;
  }
  int64_t a = 1;
  while (count / a > kMostGroups) a *= 2;
  for (; count / a >= kLeastGroups || (result.empty() && part == 1); a *= 2) result.push_back(a);
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

using Searches = std::vector<Search*>;

// What operators of these options predict from the head of a split, a block each.
std::vector<Matrix> predicted_together(const Searches& blocks,
                                       const std::vector<Observed>& observed,
                                       const FitOptions& options, int64_t rank, size_t split) {
  std::vector<BlockShape> shapes;
  std::vector<int64_t> limits;
  for (const Search* block : blocks) {
    shapes.push_back(block->shape());
    limits.push_back(std::min(rank, block->capacity()));
  }
  std::vector<Reduced> fits = reduce_together(observed, shapes, options, limits);
  // What is judged is what will predict.
  std::vector<Bounded> all;
  for (Reduced& fit : fits) all.push_back({&fit.op, &fit.image});
  const int64_t stacked = observed.empty() ? 0 : observed[0].o.cols() - options.delays + 1;
  move_all_to_unit_disc(all, options.unstable, slow_growth(options.unstable, stacked));
  std::vector<Matrix> moved;
  for (size_t i = 0; i < blocks.size(); ++i)
    moved.push_back(blocks[i]->predicted(fits[i], options, split));
  return moved;
}

std::vector<Observed> observed_together(const Searches& blocks, const FitOptions& options,
                                        size_t split, int64_t part) {
  std::vector<Observed> observed;
  for (Search* block : blocks) observed.push_back(block->observed(options, split, part));
  return observed;
}

// Least squares of every number of delays, average and part of the window.
void choose_filters(const Searches& blocks, const FitOptions& given, int64_t m) {
  if (blocks.empty()) return;
  const std::vector<int64_t> delays = delay_counts(given);
  for (const int64_t part : kWindowParts) {
    const int64_t count = last_part(m, part);
    if (part == 4 && count < kLeastQuarter) continue;
    for (const int64_t a : averages(count, part, given)) {
      FitOptions own = given;
      own.block_average = a;
      std::vector<std::vector<Predictions>> moved(delays.size());
      for (size_t split = 0; split < kSplits; ++split) {
        const std::vector<Observed> observed = observed_together(blocks, own, split, part);
        for (size_t i = 0; i < delays.size(); ++i) {
          own.delays = delays[i];
          if (count / a - (own.increments ? 1 : 0) < own.delays + 1) continue;  // not one pair
          moved[i].resize(blocks.size());
          std::vector<Matrix> next =
              predicted_together(blocks, observed, own, full_rank(given), split);
          for (size_t b = 0; b < blocks.size(); ++b) moved[i][b][split] = std::move(next[b]);
        }
      }
      for (size_t i = 0; i < delays.size(); ++i) {
        own.delays = delays[i];
        for (size_t b = 0; b < moved[i].size(); ++b)
          blocks[b]->consider({own, count, std::min(full_rank(given), blocks[b]->capacity()), 0},
                              handicap(own, count), std::move(moved[i][b]));
      }
    }
  }
}

// States or another estimator, with the averages and delays of each block's best.
void challenge(const Searches& blocks, int64_t rank, const FitOptions& wanted, int64_t m) {
  const auto kind = [&](int64_t i) {
    const FitOptions& own = blocks[i]->best();
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
      std::vector<Matrix> moved =
          predicted_together(open, observed_together(open, own, split, 1), own, rank, split);
      size_t left = 0;
      for (size_t i = 0; i < moved.size(); ++i) {
        if (split == 0 && !open[i]->may_win(moved[i])) continue;
        seen[i][split] = std::move(moved[i]);
        std::swap(seen[left], seen[i]);
        open[left++] = open[i];
      }
      open.resize(left);
    }
    for (size_t i = 0; i < open.size(); ++i)
      open[i]->challenge({own, m, std::min(rank, open[i]->capacity()), 1}, std::move(seen[i]));
  }
}

void challenge_all(const Searches& blocks, const FitOptions& given, int64_t m) {
  Searches open;
  for (Search* block : blocks)
    if (!block->is_good()) open.push_back(block);
  if (open.empty()) return;
  FitOptions own = given;
  if (given.chosen & chosen_estimator)
    for (const Estimator estimator : {Estimator::symmetric, Estimator::total_least_squares}) {
      own.estimator = estimator;
      challenge(open, full_rank(given), own, m);
    }
  if (!(given.chosen & chosen_observables)) return;
  own = given;
  own.increments = false;
  if (given.rank_rule != RankRule::hindcast) return challenge(open, full_rank(given), own, m);
  for (const int64_t rank : kRanksOfStates) {
    Searches large;
    for (Search* block : open)
      if (rank < 2 * block->capacity()) large.push_back(block);
    challenge(large, rank, own, m);
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
  challenge_all(moving, given, m);
  for (size_t i = 0; i < blocks.size(); ++i)
    if (searches[i].moves()) choices[i] = searches[i].result();
  return choices;
}

}  // namespace koopfast
