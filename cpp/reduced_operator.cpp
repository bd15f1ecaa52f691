// SPDX-License-Identifier: BSD-3-Clause
#include "reduced_operator.h"

#include <algorithm>
#include <cmath>
#include <complex>

#include "forward_backward.h"
#include "math/rank.h"

namespace koopfast {
namespace {

// Singular values nearer to each other than this leave the vectors that belong to each open.
constexpr double kSingularGap = 1 - 1e-3;

int64_t count_above(const Vector& sigma, double share, int64_t limit) {
  return koopfast::count_above(sigma.data(), sigma.size(), share, limit);
}

}  // namespace

int64_t chosen_rank(const Vector& sigma, int64_t full_rows, int64_t columns,
                    const FitOptions& options, int64_t limit) {
  return chosen_rank(sigma.data(), sigma.size(), full_rows, columns, options, limit);
}

namespace {

// F = Q Sigma V^T: all singular values, and the singular vectors that were asked for.
struct Factors {
  Vector sigma;
  Matrix q;  // (d, k)
  Matrix v;  // (p, k)
};

// `choose` makes the rank k of the singular values.
template <typename Choose>
Factors factor(const Eigen::Ref<const Matrix>& f, bool accurate, const Choose& choose) {
  Factors out;
  if (accurate) {
    thin_svd(f, out.q, out.sigma, out.v);
    const int64_t k = choose(out.sigma);
    out.q.conservativeResize(f.rows(), k);
    out.v.conservativeResize(f.cols(), k);
    return out;
  }
  const bool wide = f.rows() <= f.cols();
  Vector values;
  Matrix vectors, gram;
  if (wide)
    gram = f * f.transpose();
  else
    gram = f.transpose() * f;
  symmetric_eigen(gram, values, vectors);
  out.sigma = values.cwiseMax(0.0).cwiseSqrt();
  const int64_t k = choose(out.sigma);
  const Vector inverse = out.sigma.head(k).cwiseInverse();
  Matrix& own = wide ? out.q : out.v;
  own = vectors.leftCols(k);
  if (wide)
    out.v = f.transpose() * out.q * inverse.asDiagonal();
  else
    out.q = f * out.v * inverse.asDiagonal();
  return out;
}

// A = Q^T F' X and Phi = F' X with X = V diag(sigma / (sigma^2 + alpha)), alpha = ridge sigma_1^2.
void least_squares(const Factors& factors, const Eigen::Ref<const Matrix>& f_next, int64_t rows,
                   double ridge, Reduced& fit) {
  const auto sigma = factors.sigma.head(factors.q.cols()).array();
  const double largest = sigma.size() > 0 ? sigma(0) : 0;
  // In this order no square underflows, and without a ridge it is 1 / sigma to the last bit.
  const Vector filter = (sigma + ridge * largest * (largest / sigma)).inverse();
  fit.combining = factors.v * filter.asDiagonal();
  const Matrix image = f_next * fit.combining;
  fit.op = factors.q.transpose() * image;
  fit.image = image.topRows(rows);
  fit.of_next = true;
}

// Phi = Q A = F X with X = V diag(1 / sigma) A: the image of an operator that stays in span(Q).
void stay_in_span(const Factors& factors, int64_t rows, Reduced& fit) {
  const auto sigma = factors.sigma.head(factors.q.cols());
  fit.combining = factors.v * sigma.cwiseInverse().asDiagonal() * fit.op;
  fit.image = factors.q.topRows(rows) * fit.op;
  fit.of_next = false;
}

// Symmetric Procrustes (Higham 1988): A = A^T. With s = sigma and C = Q^T F' V the
// minimiser of |A F - F'|^2 + alpha |A|^2 is (s_i C_ji + C_ij s_j) / (s_i^2 + s_j^2 + 2 alpha).
void symmetric_procrustes(const Factors& factors, const Eigen::Ref<const Matrix>& f_next,
                          int64_t rows, double ridge, Reduced& fit) {
  const int64_t k = factors.q.cols();
  const double alpha = k > 0 ? ridge * factors.sigma(0) * factors.sigma(0) : 0;
  const Matrix c = factors.q.transpose() * (f_next * factors.v);
  fit.op.resize(k, k);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) {
      const double si = factors.sigma(i), sj = factors.sigma(j);
      fit.op(i, j) = (si * c(j, i) + c(i, j) * sj) / (si * si + sj * sj + 2 * alpha);
    }
  stay_in_span(factors, rows, fit);
}

// Least squares where the forward-backward root does not exist.
void forward_backward(const Factors& factors, const Eigen::Ref<const Matrix>& f_next, int64_t rows,
                      Reduced& fit) {
  const Vector sigma = factors.sigma.head(factors.q.cols());
  const auto inverse = sigma.cwiseInverse();
  const Matrix next = inverse.asDiagonal() * (factors.q.transpose() * f_next);
  if (sigma.size() == 0 || !forward_backward_root(factors.v, next, fit.op))
    return least_squares(factors, f_next, rows, 0, fit);
  fit.op = sigma.asDiagonal() * fit.op * inverse.asDiagonal();
  stay_in_span(factors, rows, fit);
}

// Total least squares (Hemati, Rowley, Deem & Cattafesta 2017, section 3): F and F' projected on
// the k leading right singular vectors of [F; F'], where the noise of both is the smallest. These
// factors are of the projected F; those of F are left where k vectors cannot be told from the rest.
void project_pairs(const Eigen::Ref<const Matrix>& f, const Eigen::Ref<const Matrix>& f_next,
                   const FitOptions& options, Factors& factors) {
  const int64_t k = factors.q.cols();
  Matrix pairs(2 * f.rows(), f.cols());
  pairs << f, f_next;
  const auto above = [&](const Vector& sigma) { return count_above(sigma, options.tolerance, k); };
  const Factors both = factor(pairs, options.accurate, above);
  const Matrix& basis = both.v;
  if (k < both.sigma.size() && both.sigma(k) > kSingularGap * both.sigma(k - 1)) return;
  // F' = U F holds after any projection: here a small SVD of the matrix itself keeps its digits.
  factors = factor(f * basis, true, above);
  factors.v = basis * factors.v;
}

}  // namespace

Reduced reduce(const Pairs& pairs, const BlockShape& shape, const FitOptions& options,
               int64_t limit) {
  Factors factors = factor(pairs.f, options.accurate, [&](const Vector& sigma) {
    return chosen_rank(sigma, shape.weights * options.delays, pairs.count, options, limit);
  });
  Reduced fit;
  fit.sigma = factors.sigma;
  if (options.estimator == Estimator::total_least_squares && factors.q.cols() > 0)
    project_pairs(pairs.f, pairs.f_next, options, factors);
  fit.start = factors.q.transpose() * pairs.newest;
  fit.basis = factors.q.topRows(shape.rows);
  if (options.estimator == Estimator::symmetric)
    symmetric_procrustes(factors, pairs.f_next, shape.rows, options.ridge, fit);
  else if (options.estimator == Estimator::forward_backward)
    forward_backward(factors, pairs.f_next, shape.rows, fit);
  else
    least_squares(factors, pairs.f_next, shape.rows, options.ridge, fit);
  return fit;
}

Reduced reduce(const Eigen::Ref<const Matrix>& h, const BlockShape& shape,
               const FitOptions& options, int64_t limit) {
  const int64_t p = h.cols() - 1;
  return reduce(Pairs{h.leftCols(p), h.rightCols(p), h.col(p), p}, shape, options, limit);
}

double slow_growth(Unstable unstable, int64_t p) {
  return unstable == Unstable::slow && p > 0 ? std::exp(1 / static_cast<double>(p)) : 1.0;
}

Vector divisors(const ComplexVector& values, Unstable unstable, double radius) {
  if (unstable == Unstable::keep) return Vector::Ones(values.size());
  const Vector moduli = (values.cwiseAbs() / radius).cwiseMax(1.0);
  return unstable == Unstable::damp ? Vector(moduli.cwiseAbs2()) : moduli;
}

Eigenbasis move_to_unit_disc(Matrix& op, Matrix& lift, Unstable unstable, double radius) {
  Eigenbasis basis = eigenbasis(op);
  const Vector divisor = divisors(basis.values, unstable, radius);
  if (!(divisor.maxCoeff() > 1)) return basis;
  if (!basis.usable) {
    op /= divisor.maxCoeff();
    lift /= divisor.maxCoeff();
    return eigenbasis(op);
  }
  // P - I, which leaves stable directions alone to the last bit or so.
  const Vector change = divisor.cwiseInverse().array() - 1;
  const Matrix p = (basis.vectors * change.asDiagonal() * basis.inverse).real();
  op += op * p;
  lift += lift * p;
  // The eigenvectors stay. Computed anew, moduli would come out at 1 + 1e-15, and a basis where
  // several eigenvalues meet at 1 would be a poor one.
  basis.values.array() /= divisor.array().cast<std::complex<double>>();
  return basis;
}

}  // namespace koopfast
