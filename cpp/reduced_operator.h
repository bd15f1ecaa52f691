// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "solvers/solvers.h"

namespace koopfast {

// What a fit over the pairs (h_1, h_2) ... (h_p, h_{p+1}) yields; h_{p+1} is the last column.
struct Reduced {
  Vector sigma;      // all of F
  Matrix op;         // (k, k) A
  Vector start;      // (k,) z
  Matrix image;      // (s, k) newest observables of Phi
  Matrix basis;      // (s, k) newest observables of Q
  Matrix combining;  // (p, k) V Sigma^-1: Phi as combinations of the columns of F'
};

// Fits h_{t+1} = U h_t over the columns of h, truncated to at most `limit` directions; the first
// s rows of a column are its newest observable.
Reduced least_squares(const Eigen::Ref<const Matrix>& h, int64_t s, const FitOptions& options,
                      int64_t limit);

// Moves the eigenvalues of `op` that lie outside the unit circle radially onto it: A becomes A P
// and the lift Phi P, P = W diag(min(1, 1/|lambda|)) W^-1, so that the first step is bounded like
// the others. Without a well-conditioned eigenbasis W, all of A is scaled by its spectral radius.
// Returns the eigenbasis of the result.
Eigenbasis clip_to_unit_circle(Matrix& op, Matrix& lift);

}  // namespace koopfast
