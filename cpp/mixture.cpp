// SPDX-License-Identifier: BSD-3-Clause
#include "mixture.h"

#include <cmath>

#include "math/spectral_factor.h"

namespace koopfast {
namespace {

std::complex<double> standard(Complex z) { return {z.re, z.im}; }

}  // namespace

int64_t Mixture::directions(const std::vector<Mode>& modes) {
  int64_t count = 1;  // the constant's
  for (const Mode& mode : modes) count += mode.value.imag() == 0 ? 1 : 2;
  return count;
}

bool Mixture::add(const Eigenbasis& basis, const Vector& divisor, const Vector& start,
                  const Matrix& lift, const Vector& origin, int64_t average, double weight,
                  int64_t limit) {
  const auto a = static_cast<double>(average);
  const double shift = (a - 1) / (2 * a);
  const ComplexVector amplitudes = basis.inverse * start.cast<std::complex<double>>();
  std::vector<Mode> all = modes_;
  Vector constant = constant_;
  if (average > 1) constant += weight * origin;
  for (int64_t j = 0; j < basis.values.size(); ++j) {
    const std::complex<double> value = basis.values(j) / divisor(j);
    if (value.imag() < 0) continue;  // with its conjugate
    const double copies = value.imag() > 0 ? 2 : 1;
    const ComplexVector shape =
        (copies * weight / divisor(j)) * amplitudes(j) * (lift * basis.vectors.col(j));
    if (average == 1) {
      all.push_back({value, shape});
      continue;
    }
    const Complex lambda{value.real(), value.imag()};
    constant += (standard(geometric_sum(lambda, shift)) * shape).real();
    if (std::abs(value) == 0) continue;
    const Complex mu = spectral_power(lambda, 1 + 1 / a);
    const Complex share = spectral_power(lambda, 1 + shift) / geometric_sum(mu, a);
    all.push_back({standard(mu), standard(share) * shape});
  }
  if (directions(all) > limit) return false;
  modes_ = std::move(all);
  constant_ = std::move(constant);
  weight_ += weight;
  return true;
}

void Mixture::operator_of(Matrix& op, Vector& start, Matrix& lift, Eigenbasis& basis) const {
  const int64_t k = directions(modes_);
  op = Matrix::Zero(k, k);
  start = Vector::Zero(k);
  lift = Matrix::Zero(rows_, k);
  basis.values = ComplexVector::Zero(k);
  basis.vectors = ComplexMatrix::Zero(k, k);
  basis.usable = true;
  int64_t i = 0;
  for (const Mode& mode : modes_) {
    const double re = mode.value.real(), im = mode.value.imag();
    start(i) = 1;
    lift.col(i) = mode.shape.real();
    op(i, i) = re;
    if (im == 0) {
      basis.values(i) = re;
      basis.vectors(i, i) = 1;
      ++i;
      continue;
    }
    lift.col(i + 1) = -mode.shape.imag();
    op(i, i + 1) = -im;
    op(i + 1, i) = im;
    op(i + 1, i + 1) = re;
    const double half = std::sqrt(0.5);
    basis.values(i) = mode.value;
    basis.values(i + 1) = std::conj(mode.value);
    basis.vectors(i, i) = basis.vectors(i, i + 1) = half;
    basis.vectors(i + 1, i) = {0, -half};
    basis.vectors(i + 1, i + 1) = {0, half};
    i += 2;
  }
  start(i) = 1;
  lift.col(i) = constant_;
  basis.vectors(i, i) = 1;
  lift /= weight_;
  basis.inverse = basis.vectors.adjoint();
}

}  // namespace koopfast
