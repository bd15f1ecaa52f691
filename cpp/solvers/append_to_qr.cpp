// SPDX-License-Identifier: BSD-3-Clause
#include <Eigen/QR>

#include "solvers/solvers.h"

namespace koopfast {

void append_to_qr(const Eigen::Ref<const Matrix>& rows, Matrix& r) {
  Matrix stacked(r.rows() + rows.rows(), rows.cols());
  stacked.topRows(r.rows()) = r;
  stacked.bottomRows(rows.rows()) = rows;
  const Eigen::HouseholderQR<Eigen::Ref<Matrix>> solver(stacked);
  r = solver.matrixQR().topRows(std::min(stacked.rows(), stacked.cols()));
  r.triangularView<Eigen::StrictlyLower>().setZero();
}

}  // namespace koopfast
