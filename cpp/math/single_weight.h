// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/scalar.h"
#include "math/spectral_factor.h"
#include "operator_fit.h"

// One weight's operator, for the device: single_weights.cpp goes over arrays of them.
namespace koopfast {

KF_HD inline double bounded_factor(double factor, Unstable unstable) {
  if (unstable == Unstable::keep || !(fabs(factor) > 1)) return factor;
  return unstable == Unstable::clip ? (factor > 0 ? 1.0 : -1.0) : 1 / factor;
}

// lambda^e, or 1 + lambda + ... + lambda^(e-1): as power_by_squaring.h, for matrices of order one.
KF_HD inline double whole_power(double lambda, uint64_t exponent, bool sums) {
  double square = lambda, partial = 1, out = sums ? 0 : 1;
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1u) out = sums ? partial + square * out : square * out;
    partial += square * partial;
    square *= square;
  }
  return out;
}

// f_T(lambda) of horizons T > 0 (increments) or T >= 1 (state), real part.
KF_HD inline double single_power(double lambda, double horizon, bool increments) {
  if (horizon == floor(horizon) && horizon <= DBL_MAX)
    return whole_power(lambda, static_cast<uint64_t>(horizon) - (increments ? 0 : 1), increments);
  const Complex value{lambda, 0};
  return increments ? geometric_sum(value, horizon).re : spectral_power(value, horizon).re;
}

// The weight at a horizon, from its last two snapshots.
template <typename T>
KF_HD inline void predict_single_weight(double square, double factor, bool increments,
                                        double horizon, const T& last, const T& before, T& out) {
  if (!(fabs(square) <= DBL_MAX)) return narrow(nan(""), out);
  out = last;
  if (square == 0 || horizon == 0) return;
  // As far as the first interval, states are interpolated.
  const bool between = !increments && horizon < 1;
  const double now = widen(last);
  const double image = factor * single_power(factor, between ? 1 : horizon, increments);
  if (!increments) {
    const double next = image * now;
    return narrow(between ? (1 - horizon) * now + horizon * next : next, out);
  }
  const double change = image * (now - widen(before));
  // What does not move keeps its bits, the sign of zero included.
  if (change != 0) narrow(now + change, out);
}

}  // namespace koopfast
