// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

#include "solvers/solvers.h"

namespace koopfast {

// The weighted mean of what several operators predict of one block's increments, as one operator in
// recorded intervals. Mode j of an operator on groups of a snapshots (eigenvalue lambda, share psi
// of the weights) contributes psi (lambda^t - 1) / (lambda - 1), t = T / a + s groups after the
// last one's middle, s = (a - 1) / 2a. With mu = lambda^(1/a), that is
//   psi lambda^s (mu - 1) / (lambda - 1) (mu^T - 1) / (mu - 1) + psi (lambda^s - 1) / (lambda - 1),
// a mode of mu a recorded interval, and a constant. The sum of the modes of all is real and block
// diagonal: mu, or a rotation for mu and its conjugate; the constants are a mode of eigenvalue 0.
class Mixture {
 public:
  explicit Mixture(int64_t rows) : constant_(Vector::Zero(rows)), rows_(rows) {}

  // Adds an operator (its eigenbasis, usable; its start, lift, and origin: see operator_fit.h) on
  // groups of `average` snapshots, once its eigenvalues and their parts of the lift have been
  // divided by these divisors. Nothing, and false, where there would be more than `limit`
  // directions.
  bool add(const Eigenbasis& basis, const Vector& divisor, const Vector& start, const Matrix& lift,
           const Vector& origin, int64_t average, double weight, int64_t limit);

  double weight() const { return weight_; }  // the sum of all that were added

  // (k, k), (k,) and (rows, k) of the operator, with weights that sum to one, and its eigenbasis.
  void operator_of(Matrix& op, Vector& start, Matrix& lift, Eigenbasis& basis) const;

 private:
  struct Mode {
    std::complex<double> value;
    ComplexVector shape;
  };

  static int64_t directions(const std::vector<Mode>& modes);

  std::vector<Mode> modes_;
  Vector constant_;
  int64_t rows_;
  double weight_ = 0;
};

}  // namespace koopfast
