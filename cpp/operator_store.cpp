// SPDX-License-Identifier: BSD-3-Clause
#include "operator_store.h"

#include <algorithm>
#include <limits>

#include "operator_spectrum.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

void note_options(const FitOptions& options, const OperatorArrays& out, int64_t i) {
  out.increments[i] = options.increments;
  out.delays[i] = options.delays;
  out.block_average[i] = options.block_average;
  out.estimator[i] = static_cast<int32_t>(options.estimator);
}

void note_choice(const Choice& choice, const OperatorArrays& out, int64_t i) {
  out.hindcast_error[i] = choice.error;
  out.trusted_horizon[i] = choice.trusted;
  if (out.mixture == nullptr) return;
  double* own = out.mixture + 4 * kMostMembers * i;
  for (const Member& member : choice.members) {
    *own++ = static_cast<double>(member.options.delays);
    *own++ = static_cast<double>(member.options.block_average);
    *own++ = static_cast<double>(member.snapshots);
    *own++ = member.weight;
  }
}

void begin_block(const FitOptions& options, const OperatorArrays& out, int64_t i) {
  std::fill_n(out.singular_values + out.vector_offsets[i], out.capacity[i], 0.0);
  out.rank[i] = 0;
  out.spectrum[i] = static_cast<int32_t>(Spectrum::usable);
  out.hindcast_error[i] = out.trusted_horizon[i] = std::numeric_limits<double>::quiet_NaN();
  note_options(options, out, i);
}

void store_block(const Reduced& fit, const Matrix& lift, const FitOptions& options,
                 const OperatorArrays& out, int64_t i) {
  const int64_t at = out.vector_offsets[i];
  const int64_t shown = std::min<int64_t>(out.capacity[i], fit.sigma.size());
  std::copy_n(fit.sigma.data(), shown, out.singular_values + at);
  const int64_t k = fit.op.rows();
  if (k == 0) {
    out.status[i] = static_cast<int32_t>(BlockStatus::still);
    return;
  }
  out.status[i] = static_cast<int32_t>(BlockStatus::ok);
  out.rank[i] = k;
  Eigen::Map<RowMajor>(out.operators + out.matrix_offsets[i], k, k) = fit.op;
  Eigen::Map<Vector>(out.start + at, k) = fit.start;
  Eigen::Map<RowMajor>(out.lifts + out.lift_offsets[i], lift.rows(), k) = lift;
  bound_spectrum(out, i, lift.rows(), options.unstable);
}

void store_mixture(const Mixture& mixture, const Vector& sigma, const OperatorArrays& out,
                   int64_t i) {
  const int64_t at = out.vector_offsets[i];
  std::copy_n(sigma.data(), std::min<int64_t>(out.capacity[i], sigma.size()),
              out.singular_values + at);
  Matrix op, lift;
  Vector start;
  Eigenbasis basis;
  mixture.operator_of(op, start, lift, basis);
  const int64_t k = op.rows();
  out.status[i] = static_cast<int32_t>(BlockStatus::ok);
  out.rank[i] = k;
  Eigen::Map<RowMajor>(out.operators + out.matrix_offsets[i], k, k) = op;
  Eigen::Map<Vector>(out.start + at, k) = start;
  Eigen::Map<RowMajor>(out.lifts + out.lift_offsets[i], lift.rows(), k) = lift;
  store_basis(out, i, basis);
  out.spectrum[i] = static_cast<int32_t>(Spectrum::usable);
}

}  // namespace koopfast
