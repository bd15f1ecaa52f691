// SPDX-License-Identifier: BSD-3-Clause
#include <Eigen/Eigenvalues>

#include "solvers/solvers.h"

namespace koopfast {

void symmetric_eigen(const Matrix& a, Vector& values, Matrix& vectors) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(a);
  values = solver.eigenvalues().reverse();
  vectors = solver.eigenvectors().rowwise().reverse();
}

}  // namespace koopfast
