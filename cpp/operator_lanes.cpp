// SPDX-License-Identifier: BSD-3-Clause
#include "operator_lanes.h"

#include <memory>
#include <vector>

#include "lane_groups.h"
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
  const int64_t pairs = s.m - (options.increments ? 1 : 0) - options.delays;
  const Groups groups =
      group_by(count, kMostForms, [&](int64_t i) { return table.block_size(blocks[i]); });
  // A thread makes the moments of a group and fits them while they are in its cache, where there
  // are enough groups to go round; the moments of fewer, longer ones are shared out by block.
  constexpr int64_t kPlenty = 64, kSharedDoubles = int64_t{1} << 23;
  std::vector<double> all;
  std::vector<int64_t> offsets, latest_offsets;
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const MomentShape shape{table.block_size(blocks[i]), options.delays};
    offsets.push_back(total);
    latest_offsets.push_back(total + shape.pair() * shape.pair());
    total = latest_offsets.back() + shape.stacked();
  }
  const bool shared = groups.count() < kPlenty && total <= kSharedDoubles;
  if (shared) {
    all.resize(total);
    snapshot_moments(s, table, blocks, count, options.increments, options.delays, Moments::of_pairs,
                     offsets.data(), all.data(), latest_offsets.data(), all.data(), threads);
  }
  parallel_for(groups.count(), threads, [&](int64_t g) {
    const int64_t* positions = groups.order.data() + groups.first[g];
    const int64_t lanes = groups.first[g + 1] - groups.first[g];
    const MomentShape shape{table.block_size(blocks[positions[0]]), options.delays};
    const int64_t area = shape.pair() * shape.pair(), each = area + shape.stacked();
    const std::unique_ptr<double[]> own(shared ? nullptr : new double[lanes * each]);
    std::vector<int64_t> selected;
    for (int64_t l = 0; l < lanes; ++l) selected.push_back(blocks[positions[l]]);
    if (!shared)
      group_moments(s, table, selected.data(), lanes, options.increments, options.delays,
                    Moments::of_pairs, own.get(), own.get() + area, each);
    std::vector<SmallForm> forms;
    for (int64_t l = 0; l < lanes; ++l) {
      const double* moments = shared ? all.data() + offsets[positions[l]] : own.get() + l * each;
      forms.push_back(primal_form(shape, moments, moments + area));
    }
    fit_small_forms(forms.data(), positions, lanes, pairs, s.m, options, out);
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
