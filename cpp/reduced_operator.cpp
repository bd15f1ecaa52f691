// SPDX-License-Identifier: BSD-3-Clause
#include "reduced_operator.h"

#include <algorithm>
#include <complex>

namespace koopfast {
namespace {

int64_t count_above(const Vector& sigma, double tolerance, int64_t limit) {
  if (sigma.size() == 0 || !(sigma(0) > 0)) return 0;
  const int64_t above = (sigma.array() > tolerance * sigma(0)).count();
  return std::min(limit, above);
}

// Q (d, k), V Sigma^-1 (p, k) and all singular values of F.
void factor(const Eigen::Ref<const Matrix>& f, const FitOptions& options, int64_t limit,
            Vector& sigma, Matrix& q, Matrix& combining) {
  const int64_t d = f.rows(), p = f.cols();
  if (options.accurate) {
    Matrix v;
    thin_svd(f, q, sigma, v);
    const int64_t k = count_above(sigma, options.tolerance, limit);
    q.conservativeResize(d, k);
    combining = v.leftCols(k) * sigma.head(k).cwiseInverse().asDiagonal();
    return;
  }
  Vector values;
  Matrix vectors, gram;
  if (d <= p)
    gram = f * f.transpose();
  else
    gram = f.transpose() * f;
  symmetric_eigen(gram, values, vectors);
  sigma = values.cwiseMax(0.0).cwiseSqrt();
  const int64_t k = count_above(sigma, options.tolerance, limit);
  const auto inverse = sigma.head(k).cwiseInverse();
  if (d <= p) {
    q = vectors.leftCols(k);
    combining = f.transpose() * q * inverse.cwiseAbs2().asDiagonal();
  } else {
    combining = vectors.leftCols(k) * inverse.asDiagonal();
    q = f * combining;
  }
}

}  // namespace

Reduced least_squares(const Eigen::Ref<const Matrix>& h, int64_t s, const FitOptions& options,
                      int64_t limit) {
  const int64_t p = h.cols() - 1;
  const auto f = h.leftCols(p), f_next = h.rightCols(p);
  Reduced fit;
  Matrix q;
  factor(f, options, limit, fit.sigma, q, fit.combining);
  const int64_t k = q.cols();
  const Matrix image = f_next * fit.combining;
  fit.op = q.transpose() * image;
  fit.start = q.transpose() * h.col(p);
  fit.image = image.topRows(s);
  fit.basis = q.topRows(s);
  if (options.symmetric) {
    // Symmetric Procrustes (Higham 1988): minimise |A F - F'| over A = A^T. With C = Q^T F' V
    // the minimiser is (sigma_i C_ji + C_ij sigma_j) / (sigma_i^2 + sigma_j^2), and its image of
    // Q stays in the span of Q.
    const Matrix c = fit.op * fit.sigma.head(k).asDiagonal();
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) {
        const double si = fit.sigma(i), sj = fit.sigma(j);
        fit.op(i, j) = (si * c(j, i) + c(i, j) * sj) / (si * si + sj * sj);
      }
    fit.image = fit.basis * fit.op;
  }
  return fit;
}

Eigenbasis clip_to_unit_circle(Matrix& op, Matrix& lift) {
  Eigenbasis basis = eigenbasis(op);
  const Vector modulus = basis.values.cwiseAbs().cwiseMax(1.0);
  if (!(modulus.maxCoeff() > 1)) return basis;
  if (!basis.usable) {
    op /= modulus.maxCoeff();
    lift /= modulus.maxCoeff();
    return eigenbasis(op);
  }
  // P - I, which leaves stable directions alone to the last bit or so.
  const Vector change = modulus.cwiseInverse().array() - 1;
  const Matrix p = (basis.vectors * change.asDiagonal() * basis.inverse).real();
  op += op * p;
  lift += lift * p;
  // The eigenvectors stay. Computed anew, moduli would come out at 1 + 1e-15, and a basis where
  // several eigenvalues meet at 1 would be a poor one.
  basis.values.array() /= modulus.array().cast<std::complex<double>>();
  return basis;
}

}  // namespace koopfast
