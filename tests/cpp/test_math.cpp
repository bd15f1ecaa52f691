// SPDX-License-Identifier: BSD-3-Clause
// Host checks of the maths that CPU and CUDA share (cpp/math, cpp/block_table.h): every float16 and
// bfloat16, spectral factors against long double sums, squaring against stepping.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdio>
#include <utility>
#include <vector>

#include "block_table.h"
#include "math/cholesky.h"
#include "math/general_eigen.h"
#include "math/pack_pair.h"
#include "math/power_by_squaring.h"
#include "math/scalar.h"
#include "math/spectral_factor.h"
#include "math/stability.h"
#include "math/symmetric_eigen.h"

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
  const std::vector<uint64_t> exponents{0, 1, 2, 3, 7, 64, 100, 1000};
  std::vector<double> power(exponents.size() * k), sum(power), work(2 * k * k + 2 * k);
  const auto count = static_cast<int64_t>(exponents.size());
  power_by_squaring(a, v, k, exponents.data(), count, false, power.data(), work.data());
  power_by_squaring(a, v, k, exponents.data(), count, true, sum.data(), work.data());
  for (size_t h = 0; h < exponents.size(); ++h) {
    std::vector<double> y(v, v + k), total(k, 0.0), image(k), alone(k);
    for (uint64_t t = 0; t < exponents[h]; ++t) {
      for (int i = 0; i < k; ++i) total[i] += y[i];
      multiply_vector(a, k, y.data(), k, k, image.data());
      y = image;
    }
    power_by_squaring(a, v, k, &exponents[h], 1, true, alone.data(), work.data());
    for (int i = 0; i < k; ++i) {
      const double size = std::max({1.0, std::abs(y[i]), 0.1 * std::abs(total[i])});
      expect(std::abs(power[h * k + i] - y[i]) < 1e-12 * size, "power by squaring");
      expect(std::abs(sum[h * k + i] - total[i]) < 1e-11 * size, "geometric sum by squaring");
      expect(alone[i] == sum[h * k + i], "a horizon alone gives the same bits");
    }
  }
}

double uniform(uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
}

double lane_of(double value, int) { return value; }
double lane_of(const Pack& value, int lane) { return value[lane]; }
double lane_of(const PackPair& value, int lane) {
  return lane < kLanes ? value.low[lane] : value.high[lane - kLanes];
}
void set_lane(double& value, int, double to) { value = to; }
void set_lane(Pack& value, int lane, double to) { value[lane] = to; }
void set_lane(PackPair& value, int lane, double to) {
  (lane < kLanes ? value.low[lane] : value.high[lane - kLanes]) = to;
}
bool lane_of(bool mask, int) { return mask; }
bool lane_of(const PackMask& mask, int lane) { return mask[lane] != 0; }
bool lane_of(const MaskPair& mask, int lane) {
  return (lane < kLanes ? mask.low[lane] : mask.high[lane - kLanes]) != 0;
}

// Symmetric matrices that are hard in different ways, a kind a lane.
std::vector<double> hard_matrix(int n, int kind, uint64_t& state) {
  std::vector<double> a(n * n, 0.0);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j) {
      double value = uniform(state);                                  // 0: in general position
      if (kind == 1) value = i == j ? 1.0 : 0.0;                      // the identity
      if (kind == 2) value = 0.0;                                     // nothing
      if (kind == 3) value = i == j ? std::pow(10.0, -2.0 * i) : 0;   // graded
      if (kind == 4) value = 1.0;                                     // of rank one
      if (kind == 5) value = i - j == 1 ? 1.0 : 0.0;                  // no diagonal
      if (kind == 6) value = (i < n / 2) == (j < n / 2) ? value : 0;  // two blocks
      if (kind == 7) value *= std::pow(10.0, -1.0 * (i + j));         // graded and full
      a[i * n + j] = a[j * n + i] = value;
    }
  return a;
}

template <typename V>
void check_eigen(int n, int count, int lanes) {
  uint64_t state = 1;
  std::vector<std::vector<double>> matrices;
  constexpr int kMost = 32;
  static V a[kMost * kMost], diagonal[kMost], beside[kMost], values[kMost], squares[kMost];
  static V vectors[kMost * kMost], work[2 * kMost * kMost * kMostSweeps];
  for (int l = 0; l < lanes; ++l) {
    matrices.push_back(hard_matrix(n, (l + n) % 8, state));
    for (int i = 0; i < n * n; ++i) set_lane(a[i], l, matrices[l][i]);
  }
  tridiagonalise(a, n, diagonal, beside, work);
  for (int i = 0; i < n; ++i) {
    values[i] = diagonal[i];
    squares[i] = beside[i] * beside[i];
  }
  const auto known = tridiagonal_eigenvalues(values, squares, n);
  const auto found = leading_eigenvectors(a, diagonal, beside, values, n, count,
                                          V{} + static_cast<double>(count), vectors, work);
  for (int l = 0; l < lanes; ++l) {
    expect(lane_of(known, l), "eigenvalues converge");
    expect(lane_of(found, l), "eigenvectors converge");
    double residual = 0, skew = 0, sum = 0;
    for (int i = 0; i < n; ++i) {
      sum += lane_of(values[i], l) - matrices[l][i * n + i];
      expect(i == 0 || lane_of(values[i], l) <= lane_of(values[i - 1], l), "largest first");
    }
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j < n; ++j) {
        double image = -lane_of(values[i], l) * lane_of(vectors[j * count + i], l);
        for (int k = 0; k < n; ++k)
          image += matrices[l][j * n + k] * lane_of(vectors[k * count + i], l);
        residual = std::max(residual, std::abs(image));
      }
      for (int j = 0; j < count; ++j) {
        double product = i == j ? -1.0 : 0.0;
        for (int k = 0; k < n; ++k)
          product += lane_of(vectors[k * count + i], l) * lane_of(vectors[k * count + j], l);
        skew = std::max(skew, std::abs(product));
      }
    }
    expect(std::abs(sum) < 1e-14 * n, "eigenvalues add up to the trace");
    expect(residual < 1e-14 * n, "A w = lambda w");
    expect(skew < 1e-14 * n, "eigenvectors are orthonormal");
  }
}

void check_reciprocal_roots() {
  uint64_t state = 5;
  for (int i = 0; i < 1000; ++i) {
    Pack x{};
    for (int l = 0; l < kLanes; ++l) x[l] = std::exp(300 * uniform(state));
    const Pack root = reciprocal_root(x);
    for (int l = 0; l < kLanes; ++l)
      expect(std::abs(root[l] * std::sqrt(x[l]) - 1) < 1e-15, "1 / sqrt(x)");
  }
}

// Random matrices, a rotation of the axes into each other (no shift of whose own moves it), a
// diagonal one, and one without an eigenbasis, in lanes of their own.
template <typename V>
void check_general_eigen(int n) {
  constexpr int lanes = sizeof(V) / sizeof(double);
  const int area = n * n;
  uint64_t state = 7;
  std::vector<std::vector<double>> matrices;
  for (int l = 0; l < lanes; ++l) {
    matrices.emplace_back(area);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        double& own = matrices[l][i * n + j];
        own = uniform(state);
        if (l == 1) own = (i + 1) % n == j;
        if (l == 2) own = i == j ? i + 1 : 0;
        if (l == 3) own = i == j || i + 1 == j;
      }
  }
  std::vector<V> room(13 * area + 2 * n + 1);
  V* next = room.data();
  const auto take = [&](int count) { return std::exchange(next, next + count); };
  V* a = take(area);
  for (int i = 0; i < area; ++i)
    for (int l = 0; l < lanes; ++l) set_lane(a[i], l, matrices[l][i]);
  const ComplexParts<V> values{take(n), take(n)}, vectors{take(area), take(area)};
  const ComplexParts<V> inverse{take(area), take(area)};
  V* condition = take(1);
  const auto converged = general_eigen(a, n, values, vectors, inverse, condition, take(6 * area));
  for (int l = 0; l < lanes; ++l) {
    expect(lane_of(converged, l), "general eigenvalues converge");
    const auto at = [&](const ComplexParts<V>& m, int i) {
      return std::complex<double>(lane_of(m.re[i], l), lane_of(m.im[i], l));
    };
    const double worst = lane_of(*condition, l);
    if (l == 3 && n > 1) {
      expect(!(worst < 1e6), "a defective matrix has no eigenbasis");
      continue;
    }
    expect(worst > 0.99 * n, "no condition number is below that of an orthonormal basis");
    double wrong = 0, imaginary = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        std::complex<double> sum = -matrices[l][i * n + j];
        for (int k = 0; k < n; ++k)
          sum += at(vectors, i * n + k) * at(values, k) * at(inverse, k * n + j);
        wrong = std::max(wrong, std::abs(sum));
      }
    for (int k = 0; k < n; ++k) imaginary += lane_of(values.im[k], l);
    expect(wrong < 1e-14 * n * worst, "A = V diag(lambda) V^-1");
    expect(imaginary == 0, "eigenvalues come in conjugate pairs, to the last bit");
  }
}

void check_inverse() {
  const int n = 7;
  uint64_t state = 3;
  Pack g[n * n], out[n * n], work[n * n];
  std::vector<std::vector<double>> matrices;
  for (int l = 0; l < kLanes; ++l) {
    std::vector<double> x(2 * n * n), own(n * n, l == 5 ? NAN : 0.0);  // one lane is not finite
    for (double& value : x) value = uniform(state);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < (l == 3 ? n - 2 : 2 * n); ++k)  // and one is singular
          own[i * n + j] += x[i * 2 * n + k] * x[j * 2 * n + k];
    matrices.push_back(own);
    for (int i = 0; i < n * n; ++i) g[i][l] = own[i];
  }
  const Pack condition = invert_definite(g, n, out, work);
  for (int l = 0; l < kLanes; ++l) {
    if (l == 3 || l == 5) {
      expect(!(condition[l] < 1e12), "no inverse");
      continue;
    }
    double error = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        double product = i == j ? -1.0 : 0.0;
        for (int k = 0; k < n; ++k) product += matrices[l][i * n + k] * out[k * n + j][l];
        error = std::max(error, std::abs(product));
      }
    expect(error < 1e-15 * n * condition[l], "an inverse");
  }
}

void check_products_and_stability() {
  uint64_t state = 7;
  for (const int rows : {1, 3, 4, 5, 9})
    for (const int columns : {1, 2, 4, 7}) {
      const int inner = rows + 1;
      std::vector<double> a(rows * inner), b(inner * columns), out(rows * columns);
      for (double& value : a) value = uniform(state);
      for (double& value : b) value = uniform(state);
      multiply(a.data(), b.data(), rows, inner, columns, out.data());
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          double sum = 0;
          for (int k = 0; k < inner; ++k) sum += a[i * inner + k] * b[k * columns + j];
          expect(std::abs(sum - out[i * columns + j]) < 1e-15 * inner, "a product");
        }
    }
  // A growing first step, but no growing mode; a rotation, of which norms cannot tell; growth.
  const double lanes[3][4] = {{0.9, 5, 0, 0.9}, {0, 1, -1, 0}, {1.1, 0, 0, 0.1}};
  Pack a[4]{}, work[8];
  for (int l = 0; l < 3; ++l)
    for (int i = 0; i < 4; ++i) a[i][l] = lanes[l][i];
  const PackMask stable = certainly_stable(a, 2, work);
  expect(stable[0] && !stable[1] && !stable[2] && stable[3], "certainly stable");
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
  for (const int n : {1, 2, 3, 4, 5, 11, 20, 31}) {
    check_general_eigen<double>(n);
    check_general_eigen<Pack>(n);
    for (const int count : {1, (n + 1) / 2, n}) {
      check_eigen<double>(n, count, 1);
      check_eigen<Pack>(n, count, kLanes);
      check_eigen<PackPair>(n, count, 2 * kLanes);
    }
  }
  check_reciprocal_roots();
  check_inverse();
  check_products_and_stability();
  check_block_table();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
