// SPDX-License-Identifier: BSD-3-Clause
#include "operator_store.h"

#include <algorithm>
#include <complex>
#include <limits>

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ComplexRowMajor =
    Eigen::Matrix<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

void begin_block(const OperatorArrays& out, int64_t i) {
  std::fill_n(out.singular_values + out.vector_offsets[i], out.capacity[i], 0.0);
  out.rank[i] = 0;
  out.diagonal[i] = 1;
  out.hindcast_error[i] = out.trusted_horizon[i] = std::numeric_limits<double>::quiet_NaN();
}

void store_block(const Reduced& fit, Matrix lift, const FitOptions& options,
                 const OperatorArrays& out, int64_t i) {
  const int64_t at = out.vector_offsets[i], matrix_at = out.matrix_offsets[i];
  const int64_t shown = std::min<int64_t>(out.capacity[i], fit.sigma.size());
  std::copy_n(fit.sigma.data(), shown, out.singular_values + at);
  const int64_t k = fit.op.rows();
  if (k == 0) {
    out.status[i] = static_cast<int32_t>(BlockStatus::still);
    return;
  }
  Matrix op = fit.op;
  const Eigenbasis basis = options.unstable == Unstable::keep
                               ? eigenbasis(op)
                               : move_to_unit_disc(op, lift, options.unstable);
  const auto complex = [](double* pairs) { return reinterpret_cast<std::complex<double>*>(pairs); };
  Eigen::Map<RowMajor>(out.operators + matrix_at, k, k) = op;
  Eigen::Map<Vector>(out.start + at, k) = fit.start;
  Eigen::Map<RowMajor>(out.lifts + out.lift_offsets[i], lift.rows(), k) = lift;
  Eigen::Map<ComplexVector>(complex(out.eigenvalues + 2 * at), k) = basis.values;
  if (basis.usable) {
    Eigen::Map<ComplexRowMajor>(complex(out.eigenvectors + 2 * matrix_at), k, k) = basis.vectors;
    Eigen::Map<ComplexVector>(complex(out.amplitudes + 2 * at), k) =
        basis.inverse * fit.start.cast<std::complex<double>>();
  }
  out.status[i] = static_cast<int32_t>(BlockStatus::ok);
  out.rank[i] = k;
  out.diagonal[i] = basis.usable;
}

}  // namespace koopfast
