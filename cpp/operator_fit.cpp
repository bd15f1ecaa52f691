// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "parallel.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ComplexRowMajor =
    Eigen::Matrix<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What a fit over the pairs (h_1, h_2) ... (h_p, h_{p+1}) yields; h_{p+1} is the last column.
struct Reduced {
  Vector sigma;      // all of F
  Matrix op;         // (k, k) A
  Vector start;      // (k,) z
  Matrix image;      // (s, k) newest observables of Phi
  Matrix combining;  // (p, k) V Sigma^-1: Phi as combinations of the columns of F'
};

// The columns w_t - w_last or w_t of a block, as the form holds them: (s, m).
Matrix block_coordinates(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
                         const double* coordinates) {
  const int64_t size = table.block_size(b);
  if (form == BlockForm::dual)
    return Eigen::Map<const RowMajor>(coordinates, std::min(s.m, size), s.m);
  RowMajor rows(s.m, size);
  gather_tile(s, table, b, 0, size, false, rows.data(), size);
  return rows.transpose();
}

Matrix observe(const Matrix& states, bool increments) {
  const int64_t m = states.cols();
  if (!increments) return states;
  return states.rightCols(m - 1) - states.leftCols(m - 1);
}

// h_t = [o_t, o_{t-1}, ...]: (s q, P - q + 1), the newest observable on top.
Matrix embed(const Matrix& observed, int64_t delays) {
  if (delays == 1) return observed;
  const int64_t s = observed.rows(), count = observed.cols() - delays + 1;
  Matrix h(s * delays, count);
  for (int64_t j = 0; j < delays; ++j)
    h.middleRows(j * s, s) = observed.middleCols(delays - 1 - j, count);
  return h;
}

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
    fit.image = q.topRows(s) * fit.op;
  }
  return fit;
}

std::set<int64_t> candidate_ranks(int64_t limit) {
  std::set<int64_t> ranks{limit};
  for (int64_t r = 1; r <= limit; r *= 2) {
    ranks.insert(r);
    if (r > 1 && r / 2 * 3 <= limit) ranks.insert(r / 2 * 3);
  }
  ranks.erase(0);
  return ranks;
}

// The rank that predicts the last third of the window best from the first two thirds, and its
// error: that of the displacement, relative to the displacement, over all predicted snapshots.
// Rank 0 (stand still, error 1) wins where no operator does better.
int64_t hindcast(const Matrix& h, int64_t s, const FitOptions& options, int64_t limit,
                 double& error) {
  const int64_t pairs = h.cols() - 1;
  error = kNaN;
  if (pairs < 3) return limit;
  const int64_t tail = std::max<int64_t>(1, pairs / 3), split = pairs - tail;
  const Reduced fit = least_squares(h.leftCols(split + 1), s, options, limit);
  // Displacements from the snapshot at the split on.
  Matrix truth = h.topRows(s).rightCols(tail);
  const Vector now = h.col(split).head(s);
  if (options.increments)
    for (int64_t t = 1; t < tail; ++t) truth.col(t) += truth.col(t - 1);
  else
    truth.colwise() -= now;
  const double scale = truth.squaredNorm();
  error = 1;
  int64_t best = 0;
  if (!(scale > 0)) return best;
  Matrix predicted(s, tail);
  for (const int64_t rank : candidate_ranks(fit.op.rows())) {
    const auto a = fit.op.topLeftCorner(rank, rank);
    Matrix y(rank, tail);
    y.col(0) = fit.start.head(rank);
    for (int64_t t = 1; t < tail; ++t) y.col(t).noalias() = a * y.col(t - 1);
    if (options.increments)
      for (int64_t t = 1; t < tail; ++t) y.col(t) += y.col(t - 1);
    predicted.noalias() = fit.image.leftCols(rank) * y;
    if (!options.increments) predicted.colwise() -= now;
    const double candidate = std::sqrt((predicted - truth).squaredNorm() / scale);
    if (candidate < error) {  // a NaN compares false: a diverging rank is never the best
      error = candidate;
      best = rank;
    }
  }
  return best;
}

// (m, k) coefficients of the snapshots that make up the columns of Phi.
Matrix snapshot_coefficients(const Reduced& fit, int64_t m, const FitOptions& options) {
  // Column j of F' is the embedded h_{j+1}, whose newest observable has the index j + q;
  // the self-adjoint operator's image is built from the columns of F, one earlier.
  Matrix x = fit.combining;
  int64_t newest = options.delays;
  if (options.symmetric) {
    x = fit.combining * fit.op;
    newest -= 1;
  }
  Matrix c = Matrix::Zero(m, x.cols());
  if (options.increments) c.middleRows(newest + 1, x.rows()) += x;
  const double sign = options.increments ? -1 : 1;
  c.middleRows(newest, x.rows()) += sign * x;
  return c;
}

// P of `A P` with every eigenvalue outside the unit circle moved radially onto it.
Matrix shrinker(const Eigenbasis& basis) {
  const Vector modulus = basis.values.cwiseAbs().cwiseMax(1.0);
  if (basis.usable)
    return (basis.vectors * modulus.cwiseInverse().asDiagonal() * basis.inverse).real();
  return Matrix::Identity(modulus.size(), modulus.size()) / modulus.maxCoeff();
}

void fit_one(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
             const double* coordinates, const FitOptions& options, const OperatorArrays& out,
             int64_t i) {
  const int64_t capacity = out.capacity[i];
  double* sigma_out = out.singular_values + out.vector_offsets[i];
  std::fill_n(sigma_out, capacity, 0.0);
  out.rank[i] = 0;
  out.diagonal[i] = 1;
  out.hindcast_error[i] = kNaN;

  const Matrix states = block_coordinates(s, table, b, form, coordinates);
  if (!states.allFinite()) {
    out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  const Matrix h = embed(observe(states, options.increments), options.delays);
  int64_t limit = capacity;
  if (options.hindcast) limit = hindcast(h, states.rows(), options, limit, out.hindcast_error[i]);
  const Reduced fit = least_squares(h, states.rows(), options, limit);
  const int64_t shown = std::min<int64_t>(capacity, fit.sigma.size());
  std::copy_n(fit.sigma.data(), shown, sigma_out);
  const int64_t k = fit.op.rows();
  if (k == 0) {
    out.status[i] = static_cast<int32_t>(BlockStatus::still);
    return;
  }
  Matrix op = fit.op;
  Matrix lift = form == BlockForm::dual ? snapshot_coefficients(fit, s.m, options) : fit.image;
  Eigenbasis basis = eigenbasis(op);
  if (options.clip && (basis.values.cwiseAbs().array() > 1).any()) {
    const Matrix p = shrinker(basis);
    op = op * p;
    lift = lift * p;
    basis = eigenbasis(op);
  }
  const int64_t at = out.vector_offsets[i], matrix_at = out.matrix_offsets[i];
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

}  // namespace

void operator_fit(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                  int64_t count, BlockForm form, const double* coordinates,
                  const FitOptions& options, const OperatorArrays& out, int threads) {
  parallel_for(count, threads, [&](int64_t i) {
    const double* own = form == BlockForm::dual ? coordinates + i * s.m * s.m : nullptr;
    fit_one(s, table, blocks[i], form, own, options, out, i);
  });
}

}  // namespace koopfast
