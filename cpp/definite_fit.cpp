// SPDX-License-Identifier: BSD-3-Clause
#include "definite_fit.h"

#include <algorithm>

#include "operator_spectrum.h"
#include "operator_store.h"

namespace koopfast {
namespace {

// An inverse loses as many digits as its condition number has: beyond this bound eigenvectors,
// which lose fewer, are worth their price.
constexpr double kWorstCondition = 1e8;

// Whether all directions are wanted, as far as options and room say.
bool wants_all(const LaneForms& forms, const int64_t* results, const FitRequest& request) {
  const auto& [pairs, m, options, out] = request;
  bool room = true;
  for (int l = 0; l < forms.count; ++l) room = room && out.capacity[results[l]] >= forms.order;
  return room && out.grams != nullptr && !forms.dual() && pairs >= forms.order &&
         options.ridge == 0 && options.estimator == Estimator::least_squares &&
         options.rank_rule == RankRule::none;
}

}  // namespace

unsigned fit_definite(const LaneForms& forms, const int64_t* results, const FitRequest& request) {
  const auto& [pairs, m, options, out] = request;
  if (!wants_all(forms, results, request)) return 0;
  const int n = forms.order, area = n * n;
  LaneArray square(area), inverse(area), work(2 * area), condition(1);
  std::copy_n(forms.square.data(), area * kLaneCount, square.data());
  lane_invert_definite(square.data(), n, inverse.data(), work.data(), condition.data());
  // The condition number of G is that of F, squared: below 1 / tolerance^2 no direction is noise.
  const double cut = options.tolerance * options.tolerance;
  unsigned done = 0;
  for (int l = 0; l < forms.count; ++l) {
    const double bound = condition.at(0, l);  // (NaN where G is not definite)
    if (forms.is_finite(l) && bound < kWorstCondition && bound * cut < 1) done |= 1u << l;
  }
  if (done == 0) return 0;
  LaneArray& op = square;
  lane_multiply(forms.crossed.data(), inverse.data(), n, n, n, op.data());
  const bool keep = options.unstable == Unstable::keep;
  const unsigned stable = keep ? ~0u : lane_certainly_stable(op.data(), n, work.data());
  // G's lower triangle as it was: the scale is a power of two.
  double inverse_scale[kLaneCount];
  for (int l = 0; l < kLaneCount; ++l) inverse_scale[l] = 1 / forms.scale[l];
  double* row = inverse.data();
  for (int i = 0; i < n; row += (i + 1) * kLaneCount, ++i)
    std::copy_n(forms.square.data() + i * n * kLaneCount, (i + 1) * kLaneCount, row);
  lane_scale(inverse_scale, n * (n + 1) / 2, inverse.data());
  const bool shared = out.lifts == out.operators && forms.weights[0] == n;
  double *ops[kLaneCount] = {}, *grams[kLaneCount] = {}, *lifts[kLaneCount] = {};
  double* starts[kLaneCount] = {};
  for (int l = 0; l < forms.count; ++l) {
    if ((done >> l & 1u) == 0) continue;
    const int64_t at = results[l];
    begin_block(options, out, at);
    out.rank[at] = n;
    out.status[at] = static_cast<int32_t>(BlockStatus::ok);
    out.spectrum[at] = static_cast<int32_t>(Spectrum::pending_with_gram);
    ops[l] = out.operators + out.matrix_offsets[at];
    grams[l] = out.grams + gram_offset(out, at);
    if (shared && (stable >> l & 1u) != 0)
      out.lift_offsets[at] = out.matrix_offsets[at];
    else
      lifts[l] = out.lifts + out.lift_offsets[at];
    starts[l] = out.start + out.vector_offsets[at];
  }
  lane_scatter(op.data(), area, ops);
  lane_scatter(op.data(), forms.weights[0] * n, lifts);  // of one size, as primal forms are
  lane_scatter(inverse.data(), n * (n + 1) / 2, grams);
  lane_scatter(forms.latest.data(), n, starts);
  for (int l = 0; l < forms.count; ++l) {
    if ((done & ~stable) >> l & 1u) {
      singular_values(out, results[l]);
      move_spectrum(out, results[l], forms.weights[l], options.unstable);
    }
  }
  return done;
}

}  // namespace koopfast
