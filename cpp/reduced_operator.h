// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "solvers/solvers.h"

namespace koopfast {

// What the rows of h stand for: `rows` of each column are its newest observable, in whatever
// coordinates of the block's `weights` the form holds.
struct BlockShape {
  int64_t rows;
  int64_t weights;
};

// What a fit is made of, as columns: F = [h_1 ... h_p], F' = [h_2 ... h_{p+1}]. Any (F R, F' R)
// with R R^T = I stands for the same pairs, so factors of their moments do too.
struct Pairs {
  Eigen::Ref<const Matrix> f;
  Eigen::Ref<const Matrix> f_next;
  Eigen::Ref<const Vector> newest;  // h_{p+1}
  int64_t count;                    // p
};

// What a fit over the pairs (h_1, h_2) ... (h_p, h_{p+1}) yields.
struct Reduced {
  Vector sigma;      // all of F
  Matrix op;         // (k, k) A
  Vector start;      // (k,) z
  Matrix image;      // (rows, k) newest observables of Phi
  Matrix basis;      // (rows, k) newest observables of Q
  Matrix combining;  // (p, k) X of Phi = F' X, or of Phi = F X
  bool of_next;      // whether it is F'
};

// The rank k kept of the singular values of F, descending; F has `full_rows` rows of observables.
int64_t chosen_rank(const Vector& sigma, int64_t full_rows, int64_t columns,
                    const FitOptions& options, int64_t limit);

// Fits h_{t+1} = U h_t over the pairs, truncated to at most `limit` directions.
Reduced reduce(const Pairs& pairs, const BlockShape& shape, const FitOptions& options,
               int64_t limit);

// The same over the columns of h.
Reduced reduce(const Eigen::Ref<const Matrix>& h, const BlockShape& shape,
               const FitOptions& options, int64_t limit);

// The modulus that Unstable::slow allows an operator fitted to p observables: growth by a factor e
// over all of them. 1 for the others.
double slow_growth(Unstable unstable, int64_t p);

// What eigenvalues are divided by to lie where `unstable` wants them: 1, or more.
Vector divisors(const ComplexVector& values, Unstable unstable, double radius = 1);

// Moves the eigenvalues of `op` that lie outside the unit circle radially: onto it (clip), onto a
// circle of this radius if they are outside that (slow), or to their reflection inside (damp). A
// becomes A P and the lift Phi P, P = W diag(1 / divisor) W^-1, so that the first step is bounded
// like the others. Without a well-conditioned eigenbasis W, all of A is scaled as its largest
// eigenvalue should be. Returns the eigenbasis of the result.
Eigenbasis move_to_unit_disc(Matrix& op, Matrix& lift, Unstable unstable, double radius = 1);

}  // namespace koopfast
