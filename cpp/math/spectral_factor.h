// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>
#include <cmath>

#include "host_device.h"

// What T intervals do to one eigenvector of an operator: a complex number f_T(lambda).
//   state        f_T = lambda^(T-1)                       (the first step is in the lift)
//   increments   f_T = 1 + lambda + ... + lambda^(T-1) = (lambda^T - 1) / (lambda - 1)
// T >= 1 (state) or T > 0 (increments) is real and may be infinite; NaN says that there is no
// limit.
namespace koopfast {

struct Complex {
  double re, im;
};

// Eigenvalues this near to 1, and moduli this near to the unit circle, count as being there where a
// limit is asked for: rounding must not decide whether it exists.
constexpr double kUnitEigenvalueTolerance = 1e-9;

KF_HD inline Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

KF_HD inline Complex operator/(Complex a, Complex b) {
  const double norm = b.re * b.re + b.im * b.im;
  return {(a.re * b.re + a.im * b.im) / norm, (a.im * b.re - a.re * b.im) / norm};
}

// log(1 + x), accurate for small |x|.
KF_HD inline Complex log1p(Complex x) {
  return {0.5 * ::log1p(x.re * (2 + x.re) + x.im * x.im), atan2(x.im, 1 + x.re)};
}

// exp(x) - 1, accurate for small |x|.
KF_HD inline Complex expm1(Complex x) {
  const double half_sine = sin(0.5 * x.im);
  return {::expm1(x.re) * cos(x.im) - 2 * half_sine * half_sine, ::exp(x.re) * sin(x.im)};
}

KF_HD inline Complex exp(Complex x) {
  const double modulus = ::exp(x.re);
  return {modulus * cos(x.im), modulus * sin(x.im)};
}

KF_HD inline Complex spectral_power(Complex lambda, double horizon) {
  const double modulus = hypot(lambda.re, lambda.im);
  const bool is_one = hypot(lambda.re - 1, lambda.im) <= kUnitEigenvalueTolerance;
  if (horizon > DBL_MAX) {
    if (is_one) return {1, 0};
    const double limit = modulus < 1 - kUnitEigenvalueTolerance ? 0.0 : nan("");
    return {limit, 0};
  }
  if (horizon == 1) return {1, 0};
  if (modulus == 0) return {0, 0};
  const double angle = atan2(lambda.im, lambda.re);
  return exp(Complex{(horizon - 1) * ::log(modulus), (horizon - 1) * angle});
}

KF_HD inline Complex geometric_sum(Complex lambda, double horizon) {
  const Complex below_one = {lambda.re - 1, lambda.im};
  const double distance = hypot(below_one.re, below_one.im);
  const double modulus = hypot(lambda.re, lambda.im);
  if (horizon > DBL_MAX) {
    const bool exists = modulus < 1 - kUnitEigenvalueTolerance;
    return exists ? Complex{-1, 0} / below_one : Complex{nan(""), 0};
  }
  if (distance == 0) return {horizon, 0};
  if (modulus == 0) return {1, 0};
  // Near 1 the logarithm needs lambda - 1; away from it there is nothing to cancel, and near 0 the
  // difference has lost lambda's digits.
  const Complex exponent =
      distance < 0.5 ? log1p(below_one) : Complex{::log(modulus), atan2(lambda.im, lambda.re)};
  return expm1(Complex{horizon * exponent.re, horizon * exponent.im}) / below_one;
}

}  // namespace koopfast
