// SPDX-License-Identifier: BSD-3-Clause
// Host checks of the maths that CPU and CUDA share (cpp/math, cpp/block_table.h): every float16 and
// bfloat16, spectral factors against long double sums, squaring against stepping.
#include <cmath>
#include <complex>
#include <cstdio>
#include <vector>

#include "block_table.h"
#include "math/power_by_squaring.h"
#include "math/scalar.h"
#include "math/spectral_factor.h"

namespace {

using namespace koopfast;

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what);
}

double decode(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, most = (1 << exponent_bits) - 1;
  const int exponent = (bits >> mantissa_bits) & most, mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == most) return mantissa ? std::nan("") : sign * INFINITY;
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}

template <typename Half>
void check_half(int exponent_bits, int mantissa_bits, const char* name) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const Half value{static_cast<uint16_t>(bits)};
    const double expected = decode(value.bits, exponent_bits, mantissa_bits);
    const double got = widen(value);
    if (std::isnan(expected)) {
      expect(std::isnan(got), name);
      continue;
    }
    expect(got == expected, name);
    Half back;
    narrow(got, back);
    expect(back.bits == value.bits, name);
    // Half way to the next number rounds to the even one; just beyond it rounds up.
    const Half above{static_cast<uint16_t>(bits + 1)};
    const double next = decode(above.bits, exponent_bits, mantissa_bits);
    // (Subnormal numbers are left out: their neighbourhood is below what a float resolves.)
    if (!(bits & 0x8000) && std::isfinite(next) && std::isnormal(static_cast<float>(expected))) {
      const double middle = 0.5 * (expected + next);
      narrow(middle, back);
      expect(back.bits == (bits & 1 ? above.bits : value.bits), name);
      narrow(middle * (1 + 1e-6), back);
      expect(back.bits == above.bits, name);
    }
  }
  Half back;
  narrow(1e30 * 1e30, back);
  expect(std::isinf(widen(back)), name);
  narrow(std::nan(""), back);
  expect(std::isnan(widen(back)), name);
}

void check_spectral_factors() {
  using Long = std::complex<long double>;
  const double moduli[] = {0.0,  1e-14, 1e-9,  1e-8,     1e-7, 1e-5,
                           1e-3, 0.5,   0.999, 1 - 1e-9, 1.0,  1.01};
  for (const double modulus : moduli)
    for (const double angle : {0.0, 1e-6, 0.7, 3.14159})
      for (const int horizon : {1, 2, 3, 17, 1000}) {
        const Complex lambda{modulus * std::cos(angle), modulus * std::sin(angle)};
        const Long exact{lambda.re, lambda.im};
        Long power{1}, sum{0};
        for (int t = 0; t < horizon; ++t) {
          sum += power;
          if (t + 1 < horizon) power *= exact;
        }
        const Complex p = spectral_power(lambda, horizon), g = geometric_sum(lambda, horizon);
        const auto close = [&](Complex a, Long b) {
          return std::abs(Long{a.re, a.im} - b) <= 1e-12L * horizon * std::max(1.0L, std::abs(b));
        };
        expect(close(p, power), "spectral_power");
        expect(close(g, sum), "geometric_sum");
      }
  expect(std::abs(geometric_sum({0.75, 0}, INFINITY).re - 4) < 1e-14, "limit of a sum");
  expect(std::isnan(geometric_sum({1, 0}, INFINITY).re), "a sum of ones has no limit");
  expect(spectral_power({1, 0}, INFINITY).re == 1, "the power of one stays");
  expect(spectral_power({0.5, 0.5}, INFINITY).re == 0, "a decaying power vanishes");
  expect(std::isnan(spectral_power({0, 1}, INFINITY).re), "a rotation has no limit");
  expect(std::abs(spectral_power({0.25, 0}, 1.5).re - 0.5) < 1e-15, "a square root");
}

void check_squaring() {
  const int k = 3;
  const double a[] = {0.9, 1.0, 0.0, 0.0, 0.9, 0.2, 0.1, 0.0, -0.5}, v[] = {1.0, -2.0, 0.5};
  for (const uint64_t exponent : {0, 1, 2, 3, 7, 64, 100}) {
    std::vector<double> y(v, v + k), total(k, 0.0), image(k), power(k), sum(k);
    for (uint64_t t = 0; t < exponent; ++t) {
      for (int i = 0; i < k; ++i) total[i] += y[i];
      multiply_vector(a, y.data(), k, image.data());
      y = image;
    }
    std::vector<double> work(2 * k * k + 3 * k);
    power_by_squaring(a, v, k, exponent, power.data(), sum.data(), work.data());
    for (int i = 0; i < k; ++i) {
      expect(std::abs(power[i] - y[i]) < 1e-12, "power by squaring");
      expect(std::abs(sum[i] - total[i]) < 1e-11, "geometric sum by squaring");
    }
  }
}

void check_block_table() {
  // Block 0: 5..7 and 20..23; block 1: 0..4.
  const int64_t offsets[] = {0, 2, 3}, starts[] = {5, 20, 0}, lengths[] = {3, 4, 5};
  const int64_t columns[] = {0, 3, 0};
  const BlockTable table{offsets, starts, lengths, columns};
  expect(table.block_size(0) == 7 && table.block_size(1) == 5, "block sizes");
  std::vector<int64_t> seen;
  table.for_each_run(0, 1, 6, [&](int64_t flat, int64_t column, int64_t length) {
    for (int64_t j = 0; j < length; ++j) {
      seen.push_back(flat + j);
      expect(table.find_segment(0, column + j) == (column + j < 3 ? 0 : 1), "segment of a column");
    }
  });
  expect(seen == std::vector<int64_t>{6, 7, 20, 21, 22}, "runs of a block");
}

}  // namespace

int main() {
  check_half<Float16>(5, 10, "float16");
  check_half<Bfloat16>(8, 7, "bfloat16");
  check_spectral_factors();
  check_squaring();
  check_block_table();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
