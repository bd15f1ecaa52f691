// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <Eigen/Core>

// The dense solvers that the host path takes from Eigen, each in a translation unit of its own:
// their templates are what makes Eigen slow to compile.
namespace koopfast {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;
using ComplexMatrix = Eigen::MatrixXcd;
using ComplexVector = Eigen::VectorXcd;

// Eigenvalues in descending order and the eigenvectors, column by column. Reads the lower triangle.
void symmetric_eigen(const Matrix& a, Vector& values, Matrix& vectors);

// A = U diag(sigma) V^T, thin, sigma descending.
void thin_svd(const Matrix& a, Matrix& u, Vector& sigma, Matrix& v);

// The R (columns x columns, upper triangular) of a QR of [r; rows]: one step of a TSQR.
void append_to_qr(const Eigen::Ref<const Matrix>& rows, Matrix& r);

struct Eigenbasis {
  ComplexVector values;
  ComplexMatrix vectors;
  ComplexMatrix inverse;  // of `vectors`, where usable
  bool usable;            // whether the basis is well enough conditioned to compute with
};

// An eigenbasis worse conditioned than this loses more digits than repeated squaring does.
constexpr double kEigenbasisConditionLimit = 1e6;

Eigenbasis eigenbasis(const Matrix& a);

}  // namespace koopfast
