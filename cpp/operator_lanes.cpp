// SPDX-License-Identifier: BSD-3-Clause
#include "operator_lanes.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "lane_groups.h"
#include "lane_moments.h"
#include "moment_fit.h"
#include "moments.h"
#include "parallel.h"

namespace koopfast {
namespace {

SmallForm primal_form(const MomentShape& shape, const double* moments, const double* latest) {
  const int64_t full = shape.pair(), n = shape.weights;
  return {
      BlockForm::primal, moments + n * full + n, moments + n, full, latest, 1, shape.stacked(), n};
}

// Groups that are shared out one by one, and moments that there is room for beside them.
constexpr int64_t kPlenty = 64, kSharedBytes = int64_t{1} << 26;
// Pairs of a window that are summed by one thread, whatever the number of threads.
constexpr int64_t kPiece = 4096, kMostPieces = 16;

// Primal blocks in groups of one size, up to eight in each half.
class PrimalGroups {
 public:
  PrimalGroups(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
               const FitOptions& options)
      : s_(s),
        table_(table),
        options_(options),
        pairs_(s.m - (options.increments ? 1 : 0) - options.delays),
        groups_(
            group_by(count, kMostForms, [&](int64_t i) { return table.block_size(blocks[i]); })) {
    for (const int64_t position : groups_.order) blocks_.push_back(blocks[position]);
  }

  int64_t count() const { return groups_.count(); }

  int64_t pieces() const { return std::clamp<int64_t>((pairs_ - 1) / kPiece + 1, 1, kMostPieces); }

  // Of the moments of all groups.
  int64_t bytes() const {
    int64_t total = 0;
    for (int64_t g = 0; g < count(); ++g)
      if (in_lanes(g)) total += 2 * LaneMoments::bytes({size(g), options_.delays});
    return total;
  }

  // One piece of the moments of half a group; null where it is empty, or too large for lanes.
  std::unique_ptr<LaneMoments> moments(int64_t g, int64_t half, int64_t piece) const {
    const int64_t first = groups_.first[g] + half * kLaneCount, end = groups_.first[g + 1];
    if (first >= end || !in_lanes(g)) return nullptr;
    auto own = std::make_unique<LaneMoments>(s_, table_, blocks_.data() + first,
                                             std::min<int64_t>(kLaneCount, end - first),
                                             options_.increments, options_.delays);
    const int64_t step = (pairs_ + pieces() - 1) / pieces();
    own->add(piece * step, std::min((piece + 1) * step, pairs_));
    return own;
  }

  void fit(int64_t g, const LaneMoments* low, const LaneMoments* high,
           const OperatorArrays& out) const {
    const int64_t* results = groups_.order.data() + groups_.first[g];
    const int64_t own = groups_.first[g + 1] - groups_.first[g], q = options_.delays;
    const FitRequest request{pairs_, s_.m, options_, out};
    if (!in_lanes(g)) return fit_one_by_one(g, request);
    const LaneForms first(*low, std::min<int64_t>(own, kLaneCount), size(g), q);
    if (high == nullptr) return fit_small_forms(first, nullptr, results, request);
    const LaneForms second(*high, own - kLaneCount, size(g), q);
    fit_small_forms(first, &second, results, request);
  }

 private:
  int64_t size(int64_t g) const { return table_.block_size(blocks_[groups_.first[g]]); }
  bool in_lanes(int64_t g) const { return size(g) * options_.delays <= kMostLaneOrder; }

  void fit_one_by_one(int64_t g, const FitRequest& request) const {
    const MomentShape shape{size(g), options_.delays};
    const int64_t area = shape.pair() * shape.pair();
    const std::unique_ptr<double[]> own(new double[area + shape.stacked()]);
    for (int64_t i = groups_.first[g]; i < groups_.first[g + 1]; ++i) {
      group_moments(s_, table_, blocks_.data() + i, 1, options_.increments, options_.delays,
                    Moments::of_pairs, own.get(), own.get() + area, 0);
      const SmallForm form = primal_form(shape, own.get(), own.get() + area);
      fit_small_forms(&form, groups_.order.data() + i, 1, pairs_, s_.m, options_, request.out);
    }
  }

  const SnapshotView& s_;
  const BlockTable& table_;
  const FitOptions& options_;
  const int64_t pairs_;
  const Groups groups_;
  std::vector<int64_t> blocks_;  // in the order of the groups
};

// H of the stacked observables h_t from the Gram matrix of the observables: (p + 1, p + 1).
void stack_gram(const double* gram, int64_t m, int64_t columns, int64_t delays, double* out) {
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < delays; ++l) sum += gram[(i + l) * m + j + l];
      out[i * columns + j] = sum;
    }
}

}  // namespace

bool fits_from_moments(const FitOptions& options) {
  return !options.accurate && options.chosen == 0 && options.block_average == 1 &&
         options.rank_rule != RankRule::hindcast &&
         (options.estimator == Estimator::least_squares ||
          options.estimator == Estimator::symmetric);
}

void operator_fit_primal(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                         int64_t count, const FitOptions& options, const OperatorArrays& out,
                         int threads) {
  const PrimalGroups groups(s, table, blocks, count, options);
  const int64_t pieces = groups.pieces();
  std::vector<std::unique_ptr<LaneMoments>> sums;
  // Where there are few groups of long windows, their pieces are shared out.
  if (groups.count() < kPlenty && pieces > 1 && groups.bytes() * pieces <= kSharedBytes) {
    sums.resize(2 * groups.count() * pieces);
    parallel_for(static_cast<int64_t>(sums.size()), threads, [&](int64_t i) {
      sums[i] = groups.moments(i / pieces / 2, i / pieces % 2, i % pieces);
    });
  }
  parallel_for(groups.count(), threads, [&](int64_t g) {
    // Otherwise a thread makes the moments of a group and fits them while they are in its cache.
    std::unique_ptr<LaneMoments> halves[2];
    for (int half = 0; half < 2; ++half)
      for (int64_t piece = 0; piece < pieces; ++piece) {
        std::unique_ptr<LaneMoments> own = sums.empty()
                                               ? groups.moments(g, half, piece)
                                               : std::move(sums[(2 * g + half) * pieces + piece]);
        if (halves[half] != nullptr)
          halves[half]->add(*own);
        else
          halves[half] = std::move(own);
      }
    groups.fit(g, halves[0].get(), halves[1].get(), out);
  });
}

void operator_fit_moments(const double* moments, const int64_t* moment_offsets,
                          const double* latest, const int64_t* latest_offsets, const int64_t* sizes,
                          int64_t count, int64_t pairs, const FitOptions& options,
                          const OperatorArrays& out, int threads) {
  const Groups groups = group_by(count, kMostForms, [&](int64_t i) { return sizes[i]; });
  parallel_for(groups.count(), threads, [&](int64_t g) {
    const int64_t* positions = groups.order.data() + groups.first[g];
    const int64_t lanes = groups.first[g + 1] - groups.first[g];
    std::vector<SmallForm> forms;
    for (int64_t l = 0; l < lanes; ++l)
      forms.push_back(primal_form({sizes[positions[l]], options.delays},
                                  moments + moment_offsets[positions[l]],
                                  latest + latest_offsets[positions[l]]));
    fit_small_forms(forms.data(), positions, lanes, pairs, 0, options, out);
  });
}

void operator_fit_grams(const double* grams, const int64_t* sizes, int64_t count, int64_t m,
                        const FitOptions& options, const OperatorArrays& out, int threads) {
  const int64_t pairs = m - (options.increments ? 1 : 0) - options.delays, columns = pairs + 1;
  const Groups groups = group_by(count, kMostForms, [](int64_t) { return 0; });
  parallel_for(groups.count(), threads, [&](int64_t g) {
    const int64_t* positions = groups.order.data() + groups.first[g];
    const int64_t lanes = groups.first[g + 1] - groups.first[g];
    std::vector<double> stacked(lanes * columns * columns);
    std::vector<SmallForm> forms;
    for (int64_t l = 0; l < lanes; ++l) {
      double* own = stacked.data() + l * columns * columns;
      stack_gram(grams + positions[l] * m * m, m, columns, options.delays, own);
      // h_{p+1} is the last column: F^T h_{p+1} is that of H, row by row.
      forms.push_back({BlockForm::dual, own, own + 1, columns, own + pairs, columns, pairs,
                       sizes[positions[l]]});
    }
    fit_small_forms(forms.data(), positions, lanes, pairs, m, options, out);
  });
}

}  // namespace koopfast
