// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/rank.h"
#include "math/team_eigen.h"
#include "operator_fit.h"

// One block's fit from second moments by a team, for the device: what moment_fit.cpp does for
// eight blocks at a time on the host, from the same matrices and with the same arithmetic. Spectra
// are bounded only where that is certain to change nothing; the others are left `unbounded`.
namespace koopfast {

// Spectrum of a block whose eigenvalues have yet to be looked at (never seen outside a fit).
constexpr int32_t kUnbounded = -3;

// The matrices of a fit, of order n: G = F F^T and C = F' F^T of a primal block (K of moments.h),
// or G = F^T F and C = F^T F' of a dual one, made of the Gram matrix of its observables.
struct SmallMoments {
  BlockForm form;
  const double* source;  // K (D, D), or the Gram matrix (m, m)
  const double* newest;  // primal: h_{p+1} (order,)
  int64_t ld;            // of `source`
  int64_t weights;       // n_b
  int64_t delays;        // q
  int64_t order;         // d = q n_b, or p
  int64_t pairs;         // p
  int64_t m;             // snapshots that coefficients stand for

  // Entry (i, j) of the stacked observables' Gram matrix (p + 1, p + 1).
  KF_HD double stacked(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t l = 0; l < delays; ++l) sum += source[(i + l) * ld + j + l];
    return sum;
  }
  KF_HD bool dual() const { return form == BlockForm::dual; }
  KF_HD double square(int64_t i, int64_t j) const {
    return dual() ? stacked(i, j) : source[(weights + i) * ld + weights + j];
  }
  KF_HD double crossed(int64_t i, int64_t j) const {
    return dual() ? stacked(i, j + 1) : source[i * ld + weights + j];
  }
  KF_HD double latest(int64_t i) const { return dual() ? stacked(i, pairs) : newest[i]; }
};

// Powers up to A^65536 are looked at: an eigenproblem costs more.
constexpr int kDoublings = 16;

// Doubles that a fit of this order works with.
KF_HD inline int64_t small_fit_workspace(int64_t order) { return 9 * order * order + 8 * order; }

namespace small_fit {

// Symmetric Procrustes as in reduced_operator.cpp, from B = W^T C W; A into `op`, the image Q A, or
// X of F X, into `lift`.
template <typename Team>
KF_HD inline void procrustes(const Team& team, bool dual, int n, int k, double scale, double ridge,
                             const double* sigma, const double* w, const double* b, double* start,
                             double* op, double* lift) {
  for (int e = team.index(); e < k * k; e += team.size()) {
    const int i = e / k, j = e % k;
    const double own = b[i * k + j] / scale, other = b[j * k + i] / scale;
    const double si = sigma[i], sj = sigma[j];
    const double both = dual ? other * (si / sj) + own * (sj / si) : other + own;
    op[e] = both / (si * si + sj * sj + 2 * ridge);
  }
  for (int i = team.index(); dual && i < k; i += team.size()) start[i] /= sigma[i] * scale;
  team.sync();
  for (int e = team.index(); e < n * k; e += team.size()) {
    const int i = e / k, j = e % k;
    double sum = 0;
    for (int r = 0; r < k; ++r)
      sum += w[i * k + r] * (dual ? op[r * k + j] / sigma[r] : op[r * k + j]);
    lift[e] = sum;
  }
  team.sync();
}

// The newest observables of Phi: rows of `lift` for a primal block; coefficients of the snapshots
// for a dual one, column i of F' being the observable i + q, that of F the one before.
template <typename Team>
KF_HD inline void store_lift(const Team& team, const SmallMoments& f, const FitOptions& options,
                             int64_t k, const double* lift, double* out) {
  const int64_t rows = f.dual() ? f.m : f.weights;
  const int64_t newest = f.delays - (options.estimator == Estimator::symmetric ? 1 : 0);
  for (int64_t e = team.index(); e < rows * k; e += team.size()) {
    if (!f.dual()) {
      out[e] = lift[e];
      continue;
    }
    const int64_t row = e / k - newest, j = e % k, before = row - 1;
    const double here = row >= 0 && row < f.order ? lift[row * k + j] : 0;
    const double last = before >= 0 && before < f.order ? lift[before * k + j] : 0;
    out[e] = options.increments ? last - here : here;
  }
}

}  // namespace small_fit

// Fits a block and writes its results, as block i of `out`. `work` holds small_fit_workspace.
template <typename Team>
KF_HD inline void fit_small(const Team& team, const SmallMoments& f, const FitOptions& options,
                            const OperatorArrays& out, int64_t i, double* work) {
  const int n = static_cast<int>(f.order), area = n * n;
  const int own = team.index(), lanes = team.size();
  double *square = work, *crossed = square + area, *w = crossed + area, *image = w + area;
  double *divisor = image + area, *projected = divisor + area, *lift = projected + area;
  double *vectors = lift + area, *spare = vectors + area;
  double *values = spare + area, *sigma = values + n, *latest = sigma + n, *inverse = latest + n;
  double *start = inverse + n, *pair = start + n, *latest_image = pair + 2 * n;
  const bool dual = f.dual(), first_lane = own == 0;
  const int64_t capacity = out.capacity[i], at = out.vector_offsets[i];

  double largest = 0, probe = 0;  // NaN as soon as something is not finite
  for (int e = own; e < area; e += lanes) {
    square[e] = f.square(e / n, e % n);
    crossed[e] = f.crossed(e / n, e % n);
    probe += 0 * square[e] + 0 * crossed[e];
  }
  for (int r = own; r < n; r += lanes) {
    latest[r] = f.latest(r);
    probe += 0 * latest[r];
  }
  const bool finite = team.sum(probe) == 0;
  team.sync();
  for (int r = 0; r < n; ++r) largest = square[r * n + r] > largest ? square[r * n + r] : largest;
  for (int64_t r = own; r < capacity; r += lanes) out.singular_values[at + r] = 0;
  if (first_lane) {
    out.status[i] = static_cast<int32_t>(finite ? BlockStatus::still : BlockStatus::non_finite);
    out.rank[i] = 0;
    out.spectrum[i] = static_cast<int32_t>(Spectrum::usable);
    out.hindcast_error[i] = out.trusted_horizon[i] = nan("");
    out.increments[i] = options.increments;
    out.delays[i] = options.delays;
    out.block_average[i] = options.block_average;
    out.estimator[i] = static_cast<int32_t>(options.estimator);
  }
  team.sync();
  if (!finite || !(largest > 0)) return;

  // A power of two that brings the largest entry of G (on its diagonal) to between 1/2 and 1.
  int exponent;
  (void)frexp(largest, &exponent);
  exponent = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent;
  const double scale = ldexp(1.0, -exponent);
  for (int e = own; e < area; e += lanes) {
    spare[e] = square[e] *= scale;
    crossed[e] *= scale;
  }
  // F^T h is of the second order, too; h itself is not.
  for (int r = own; dual && r < n; r += lanes) latest[r] *= scale;
  team.sync();
  if (!team_symmetric_eigen(team, spare, n, values, vectors, pair)) {
    if (first_lane) out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  // In descending order; F has no more singular values than columns.
  const int64_t count = n < f.pairs ? n : f.pairs;
  for (int r = own; r < n; r += lanes) {
    int place = 0;
    for (int o = 0; o < n; ++o) place += values[o] > values[r] || (values[o] == values[r] && o < r);
    latest_image[place] = r;
    sigma[place] = sqrt((values[r] > 0 ? values[r] : 0) / scale);
  }
  team.sync();
  for (int64_t r = own; r < count && r < capacity; r += lanes)
    out.singular_values[at + r] = sigma[r];
  const int k = static_cast<int>(
      chosen_rank(sigma, count, f.weights * options.delays, f.pairs, options, capacity));
  if (k == 0) return;
  for (int e = own; e < n * k; e += lanes)
    w[e] = vectors[static_cast<int>(latest_image[e % k]) * n + e / k];
  team.sync();

  // An eigensolver leaves errors of eps s_1^2, far above the rounding of G in what is small of it:
  // quotients are formed with D = W^T G W, its diagonal to begin with.
  const double ridge = options.ridge * sigma[0] * sigma[0];
  team_multiply(team, square, w, n, n, k, image);
  team_multiply_transposed(team, w, image, k, n, k, divisor);
  for (int j = own; j < k; j += lanes) {
    // The ridge of a dual fit is in its filter.
    if (!dual) divisor[j * k + j] += ridge * scale;
    inverse[j] = 1 / divisor[j * k + j];
  }
  team.sync();
  team_multiply(team, crossed, w, n, n, k, image);
  if (options.estimator == Estimator::symmetric) {
    team_multiply_transposed(team, w, image, k, n, k, spare);
    team_multiply_transposed(team, w, latest, k, n, 1, start);
    small_fit::procrustes(team, dual, n, k, scale, ridge, sigma, w, spare, start, projected, lift);
  } else if (dual) {
    // A = S D^-1 B filter with B = V^T C V, z = S D^-1 V^T b, X = V filter; D^-1 B by its
    // transpose.
    team_multiply_transposed(team, image, w, k, n, k, spare);
    team_divide(team, spare, divisor, inverse, k, k, vectors, projected);
    team_multiply_transposed(team, w, latest, k, n, 1, pair);
    team_divide(team, pair, divisor, inverse, 1, k, start, pair + n);
    for (int e = own; e < k * k; e += lanes) {
      // In this order no square underflows; 1 / sigma without a ridge.
      const int r = e / k, j = e % k;
      const double filter = 1 / (sigma[j] + options.ridge * sigma[0] * (sigma[0] / sigma[j]));
      projected[e] = vectors[j * k + r] * sigma[r] * filter;
    }
    for (int e = own; e < n * k; e += lanes) {
      const int j = e % k;
      lift[e] = w[e] * (1 / (sigma[j] + options.ridge * sigma[0] * (sigma[0] / sigma[j])));
    }
    for (int j = own; j < k; j += lanes) start[j] *= sigma[j];
    team.sync();
  } else {
    // Phi = C Q D^-1, A = Q^T Phi.
    team_divide(team, image, divisor, inverse, n, k, lift, spare);
    team_multiply_transposed(team, w, lift, k, n, k, projected);
    team_multiply_transposed(team, w, latest, k, n, 1, start);
  }
  double* op = out.operators + out.matrix_offsets[i];
  for (int e = own; e < k * k; e += lanes) op[e] = projected[e];
  for (int j = own; j < k; j += lanes) out.start[at + j] = start[j];
  small_fit::store_lift(team, f, options, k, lift, out.lifts + out.lift_offsets[i]);
  const bool bounded = options.unstable == Unstable::keep ||
                       team_certainly_stable(team, projected, k, kDoublings, square);
  if (first_lane) {
    out.status[i] = static_cast<int32_t>(BlockStatus::ok);
    out.rank[i] = k;
    out.spectrum[i] = bounded ? static_cast<int32_t>(Spectrum::pending) : kUnbounded;
  }
}

}  // namespace koopfast
