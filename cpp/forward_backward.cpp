// SPDX-License-Identifier: BSD-3-Clause
#include "forward_backward.h"

#include <Eigen/LU>
#include <complex>

namespace koopfast {
namespace {

// A backward operator worse conditioned than this is taken for singular.
constexpr double kBackwardConditionLimit = 1e6;
// Eigenvalues of A_f that are each other's opposite to this share of the largest have one square:
// the sign of their roots is lost in it.
constexpr double kOppositeEigenvalues = 1e-2;

bool has_opposites(const ComplexVector& values) {
  const double least = kOppositeEigenvalues * values.cwiseAbs().maxCoeff();
  for (Eigen::Index i = 0; i < values.size(); ++i)
    for (Eigen::Index j = 0; j < i; ++j)
      if (!(std::abs(values(i) + values(j)) > least)) return true;
  return false;
}

}  // namespace

bool forward_backward_root(const Matrix& v, const Matrix& next, Matrix& root) {
  // With F = V^T orthonormal, A_f = F' V and A_b = V^T F'^+ = A_f^T (F' F'^T)^-1.
  const Matrix forward = next * v;
  const Matrix inverse = forward.partialPivLu().inverse();
  if (!(inverse.norm() * next.norm() < kBackwardConditionLimit)) return false;  // or a NaN
  if (has_opposites(eigenbasis(forward).values)) return false;
  const Eigenbasis square = eigenbasis(forward * (next * next.transpose()) * inverse.transpose());
  if (!square.usable) return false;
  const ComplexMatrix seen = square.inverse * forward * square.vectors;
  ComplexVector values(square.values.size());
  for (Eigen::Index i = 0; i < values.size(); ++i) {
    const std::complex<double> squared = square.values(i);
    // One negative eigenvalue has no root among real operators.
    if (squared.imag() == 0 && squared.real() < 0) return false;
    values(i) = std::sqrt(squared);
    if ((std::conj(values(i)) * seen(i, i)).real() < 0) values(i) = -values(i);
  }
  root = (square.vectors * values.asDiagonal() * square.inverse).real();
  return true;
}

}  // namespace koopfast
