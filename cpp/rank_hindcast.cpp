// SPDX-License-Identifier: BSD-3-Clause
#include "rank_hindcast.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "math/stability.h"

namespace koopfast {
namespace {

std::set<int64_t> candidate_ranks(int64_t limit) {
  std::set<int64_t> ranks{limit};
  for (int64_t r = 1; r <= limit; r *= 2) {
    ranks.insert(r);
    if (r > 1 && r / 2 * 3 <= limit) ranks.insert(r / 2 * 3);
  }
  ranks.erase(0);
  return ranks;
}

}  // namespace

double trusted_intervals(const Matrix& predicted, const Matrix& truth) {
  constexpr double kBound = kTrustedError * kTrustedError;
  int64_t t = 0;
  while (t < truth.cols() &&
         (predicted.col(t) - truth.col(t)).squaredNorm() <= kBound * truth.col(t).squaredNorm())
    ++t;
  return static_cast<double>(t);
}

bool certainly_stable(const Matrix& a) {
  const int k = static_cast<int>(a.rows());
  std::vector<double> work(2 * k * k);
  // By columns, that is A^T: of the same eigenvalues.
  return certainly_stable(a.data(), k, work.data());
}

int64_t rank_by_hindcast(const Pairs& head, const Eigen::Ref<const Matrix>& later,
                         const BlockShape& shape, const FitOptions& options, int64_t limit,
                         double& error, double& trusted) {
  const int64_t tail = later.cols();
  Reduced fit = reduce(head, shape, options, limit);
  // Displacements from the snapshot at the split on.
  Matrix truth = later;
  const Vector now = head.newest.head(shape.rows);
  if (options.increments)
    for (int64_t t = 1; t < tail; ++t) truth.col(t) += truth.col(t - 1);
  else
    truth.colwise() -= now;
  const double scale = truth.squaredNorm();
  error = 1;
  trusted = 0;
  int64_t best = 0;
  if (!(scale > 0)) return best;
  Matrix predicted(shape.rows, tail);
  const bool nested =
      options.estimator == Estimator::least_squares || options.estimator == Estimator::symmetric;
  for (const int64_t candidate : candidate_ranks(fit.op.rows())) {
    if (!nested) fit = reduce(head, shape, options, candidate);
    const int64_t rank = std::min<int64_t>(candidate, fit.op.rows());
    Matrix a = fit.op.topLeftCorner(rank, rank);
    // A self-adjoint image mixes all columns of A: cut to the rank, it is built again.
    Matrix lift = fit.image.leftCols(rank);
    if (options.estimator == Estimator::symmetric) lift = fit.basis.leftCols(rank) * a;
    // What is judged is what will predict.
    if (options.unstable != Unstable::keep && !certainly_stable(a))
      move_to_unit_disc(a, lift, options.unstable);
    Matrix y(rank, tail);
    y.col(0) = fit.start.head(rank);
    for (int64_t t = 1; t < tail; ++t) y.col(t).noalias() = a * y.col(t - 1);
    if (options.increments)
      for (int64_t t = 1; t < tail; ++t) y.col(t) += y.col(t - 1);
    predicted.noalias() = lift * y;
    if (!options.increments) predicted.colwise() -= now;
    const double own = std::sqrt((predicted - truth).squaredNorm() / scale);
    if (own < error) {  // a NaN compares false: a diverging rank is never the best
      error = own;
      best = candidate;
      trusted = trusted_intervals(predicted, truth);
    }
  }
  return best;
}

}  // namespace koopfast
