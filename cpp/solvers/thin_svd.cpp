// SPDX-License-Identifier: BSD-3-Clause
#include <Eigen/SVD>

#include "solvers/solvers.h"

namespace koopfast {

void thin_svd(const Matrix& a, Matrix& u, Vector& sigma, Matrix& v) {
  const Eigen::BDCSVD<Matrix> solver(a, Eigen::ComputeThinU | Eigen::ComputeThinV);
  u = solver.matrixU();
  sigma = solver.singularValues();
  v = solver.matrixV();
}

}  // namespace koopfast
