// SPDX-License-Identifier: BSD-3-Clause
#include "operator_spectrum.h"

#include <complex>
#include <vector>

#include "lane_forms.h"
#include "math/stability.h"
#include "parallel.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ComplexRowMajor =
    Eigen::Matrix<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

void store_basis(const OperatorArrays& out, int64_t i, const Eigenbasis& basis) {
  const int64_t k = out.rank[i], at = out.vector_offsets[i];
  const auto complex = [](double* pairs) { return reinterpret_cast<std::complex<double>*>(pairs); };
  const Eigen::Map<const Vector> start(out.start + at, k);
  Eigen::Map<ComplexVector>(complex(out.eigenvalues + 2 * at), k) = basis.values;
  if (!basis.usable) return;
  Eigen::Map<ComplexRowMajor>(complex(out.eigenvectors + 2 * out.matrix_offsets[i]), k, k) =
      basis.vectors;
  Eigen::Map<ComplexVector>(complex(out.amplitudes + 2 * at), k) =
      basis.inverse * start.cast<std::complex<double>>();
}

void bound_spectrum(const OperatorArrays& out, int64_t i, int64_t rows, Unstable unstable) {
  const int64_t k = out.rank[i];
  const double* op = out.operators + out.matrix_offsets[i];
  bool pending = k <= kMostLaneOrder;  // larger ones predict by their eigenbasis
  if (pending && unstable != Unstable::keep) {
    std::vector<double> work(2 * k * k);
    pending = certainly_stable(op, static_cast<int>(k), work.data());
  }
  if (pending)
    out.spectrum[i] = static_cast<int32_t>(Spectrum::pending);
  else
    move_spectrum(out, i, rows, unstable);
}

void move_spectrum(const OperatorArrays& out, int64_t i, int64_t rows, Unstable unstable) {
  const int64_t k = out.rank[i];
  Eigen::Map<RowMajor> stored_op(out.operators + out.matrix_offsets[i], k, k);
  Eigen::Map<RowMajor> stored_lift(out.lifts + out.lift_offsets[i], rows, k);
  Matrix op = stored_op, lift = stored_lift;
  const Eigenbasis basis =
      unstable == Unstable::keep ? eigenbasis(op) : move_to_unit_disc(op, lift, unstable);
  stored_op = op;
  stored_lift = lift;
  store_basis(out, i, basis);
  out.spectrum[i] = static_cast<int32_t>(basis.usable ? Spectrum::usable : Spectrum::unusable);
}

void singular_values(const OperatorArrays& out, int64_t i) {
  const int64_t k = out.rank[i];
  const double* own = out.grams + gram_offset(out, i);
  Matrix gram(k, k), vectors;
  for (int64_t row = 0; row < k; ++row)
    for (int64_t column = 0; column <= row; ++column)
      gram(row, column) = gram(column, row) = *own++;
  const double scale = power_of_two_scale(gram.data(), k);
  Vector values;
  symmetric_eigen(scale * gram, values, vectors);
  Eigen::Map<Vector>(out.singular_values + out.vector_offsets[i], k) =
      (values.cwiseMax(0.0) / scale).cwiseSqrt();
}

void move_spectra(const OperatorArrays& out, const int64_t* rows, int64_t count, Unstable unstable,
                  int threads) {
  parallel_for(count, threads, [&](int64_t i) { move_spectrum(out, i, rows[i], unstable); });
}

void operator_spectrum(const OperatorArrays& out, int64_t count, int threads) {
  parallel_for(count, threads, [&](int64_t i) {
    const auto spectrum = static_cast<Spectrum>(out.spectrum[i]);
    if (spectrum == Spectrum::pending_with_gram)
      singular_values(out, i);
    else if (spectrum != Spectrum::pending)
      return;
    const int64_t k = out.rank[i];
    const Eigenbasis basis =
        eigenbasis(Eigen::Map<const RowMajor>(out.operators + out.matrix_offsets[i], k, k));
    store_basis(out, i, basis);
    out.spectrum[i] =
        static_cast<int32_t>(basis.usable ? Spectrum::later_usable : Spectrum::later_unusable);
  });
}

}  // namespace koopfast
