// SPDX-License-Identifier: BSD-3-Clause
#include "single_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "math/spectral_factor.h"
#include "parallel.h"

namespace koopfast {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Weights of a tile: their sums stay in a level-1 cache while the rows go by.
constexpr int64_t kTile = 1024;

// o_t of a column, from row t on.
template <bool Increments, typename T>
KF_INLINE double observable(const T* row, int64_t stride, int64_t column) {
  return Increments ? widen(row[stride + column]) - widen(row[column]) : widen(row[column]);
}

// Adds the pairs t .. t + Pairs - 1: every sum is loaded and stored once for all of them.
template <bool Increments, int Pairs, typename T>
KF_INLINE void add_pairs(const T* row, int64_t stride, int64_t columns, double* squares,
                         double* products) {
#pragma omp simd
  for (int64_t c = 0; c < columns; ++c) {
    double now = observable<Increments>(row, stride, c), square = 0, product = 0;
    for (int t = 1; t <= Pairs; ++t) {
      const double next = observable<Increments>(row + t * stride, stride, c);
      square += now * now;
      product += next * now;
      now = next;
    }
    squares[c] += square;
    products[c] += product;
  }
}

template <bool Increments, typename T>
KF_INLINE void add_all(const T* first, int64_t stride, int64_t pairs, int64_t columns,
                       double* squares, double* products) {
  int64_t t = 0;
  for (; t + 4 <= pairs; t += 4)
    add_pairs<Increments, 4>(first + t * stride, stride, columns, squares, products);
  for (; t < pairs; ++t)
    add_pairs<Increments, 1>(first + t * stride, stride, columns, squares, products);
}

template <typename T>
KF_INLINE void add_tile(const T* first, int64_t stride, int64_t pairs, int64_t columns,
                        bool increments, double* squares, double* products) {
  if (increments)
    add_all<true>(first, stride, pairs, columns, squares, products);
  else
    add_all<false>(first, stride, pairs, columns, squares, products);
}

KF_MULTIARCH void add_moments(const float* first, int64_t stride, int64_t pairs, int64_t columns,
                              bool increments, double* squares, double* products) {
  add_tile(first, stride, pairs, columns, increments, squares, products);
}
KF_MULTIARCH void add_moments(const double* first, int64_t stride, int64_t pairs, int64_t columns,
                              bool increments, double* squares, double* products) {
  add_tile(first, stride, pairs, columns, increments, squares, products);
}
KF_MULTIARCH void add_moments(const Bfloat16* first, int64_t stride, int64_t pairs, int64_t columns,
                              bool increments, double* squares, double* products) {
  add_tile(first, stride, pairs, columns, increments, squares, products);
}
KF_MULTIARCH void add_moments(const Float16* first, int64_t stride, int64_t pairs, int64_t columns,
                              bool increments, double* squares, double* products) {
  add_tile(first, stride, pairs, columns, increments, squares, products);
}

double bounded(double factor, Unstable unstable) {
  if (unstable == Unstable::keep || !(std::abs(factor) > 1)) return factor;
  return unstable == Unstable::clip ? std::copysign(1.0, factor) : 1 / factor;
}

// lambda^e, or 1 + lambda + ... + lambda^(e-1), of every factor: as math/power_by_squaring.h, for
// matrices of order one.
KF_MULTIARCH void whole_powers(const double* factors, int64_t count, uint64_t exponent, bool sums,
                               double* out) {
  double square[kTile], partial[kTile];
  for (int64_t i = 0; i < count; ++i) {
    square[i] = factors[i];
    partial[i] = 1;
    out[i] = sums ? 0 : 1;
  }
  for (; exponent != 0; exponent >>= 1) {
    const double taken = exponent & 1u ? 1 : 0;
    for (int64_t i = 0; i < count; ++i) {
      const double next = sums ? partial[i] + square[i] * out[i] : square[i] * out[i];
      out[i] = taken != 0 ? next : out[i];
      partial[i] += square[i] * partial[i];
      square[i] *= square[i];
    }
  }
}

// f_T(lambda) of horizons T > 0 (increments) or T >= 1 (state), real part.
void spectral_factors(const double* factors, int64_t count, double horizon, bool increments,
                      double* out) {
  if (horizon == std::floor(horizon) && !std::isinf(horizon))
    return whole_powers(factors, count, static_cast<uint64_t>(horizon) - (increments ? 0 : 1),
                        increments, out);
  for (int64_t i = 0; i < count; ++i) {
    const Complex lambda{factors[i], 0};
    out[i] = increments ? geometric_sum(lambda, horizon).re : spectral_power(lambda, horizon).re;
  }
}

}  // namespace

void single_weight_fit(const SnapshotView& s, bool increments, double ridge, Unstable unstable,
                       double* squares, double* factors, int threads) {
  const int64_t pairs = s.m - (increments ? 2 : 1), tiles = (s.n + kTile - 1) / kTile;
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(tiles, threads, [&](int64_t tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, s.n - begin);
      double own[kTile] = {}, products[kTile] = {};
      add_moments(s.row<T>(0) + begin, s.row_stride, pairs, count, increments, own, products);
      for (int64_t i = 0; i < count; ++i) {
        // The last observable counts, too: NaN where it is not finite, or a product overflowed.
        squares[begin + i] = own[i] + 0 * products[i];
        factors[begin + i] = bounded(products[i] / ((1 + ridge) * own[i]), unstable);
      }
    });
  });
}

void single_weight_predict(const SnapshotView& s, bool increments, const double* squares,
                           const double* factors, const double* horizons, int64_t n_horizons,
                           void* out, int64_t out_stride, int threads) {
  const int64_t tiles = (s.n + kTile - 1) / kTile;
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(tiles, threads, [&](int64_t tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, s.n - begin);
      const T* last = s.row<T>(s.m - 1) + begin;
      double powers[kTile];
      for (int64_t h = 0; h < n_horizons; ++h) {
        T* row = static_cast<T*>(out) + h * out_stride + begin;
        // As far as the first interval, states are interpolated.
        const bool between = !increments && horizons[h] < 1;
        if (horizons[h] > 0)
          spectral_factors(factors + begin, count, between ? 1 : horizons[h], increments, powers);
        for (int64_t i = 0; i < count; ++i) {
          const double square = squares[begin + i], now = widen(last[i]);
          if (!std::isfinite(square)) {
            narrow(kNaN, row[i]);
            continue;
          }
          if (square == 0 || horizons[h] == 0) {
            row[i] = last[i];
            continue;
          }
          const double image = factors[begin + i] * powers[i];
          if (!increments) {
            const double next = image * now;
            narrow(between ? (1 - horizons[h]) * now + horizons[h] * next : next, row[i]);
            continue;
          }
          const double change = image * (now - widen(last[i - s.row_stride]));
          // What does not move keeps its bits, the sign of zero included.
          if (change == 0)
            row[i] = last[i];
          else
            narrow(now + change, row[i]);
        }
      }
    });
  });
}

}  // namespace koopfast
