// SPDX-License-Identifier: BSD-3-Clause
#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <limits>

#include "solvers/solvers.h"

namespace koopfast {

Eigenbasis eigenbasis(const Matrix& a) {
  const Eigen::EigenSolver<Matrix> solver(a);
  Eigenbasis basis;
  if (solver.info() != Eigen::Success) {
    basis.values = ComplexVector::Constant(a.rows(), std::numeric_limits<double>::quiet_NaN());
    basis.usable = false;
    return basis;
  }
  basis.values = solver.eigenvalues();
  basis.vectors = solver.eigenvectors();
  basis.inverse = basis.vectors.partialPivLu().inverse();
  // The Frobenius condition number bounds the spectral one from above.
  const double condition = basis.vectors.norm() * basis.inverse.norm();
  basis.usable = condition < kEigenbasisConditionLimit;  // false for NaN, too
  return basis;
}

}  // namespace koopfast
