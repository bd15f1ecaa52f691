// SPDX-License-Identifier: BSD-3-Clause
#include "single_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fresh_pages.h"
#include "math/spectral_factor.h"
#include "pack_load.h"
#include "parallel.h"

namespace koopfast {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Weights of a tile: their sums stay in a level-1 cache while the rows go by.
constexpr int64_t kTile = 1024;

// A weight's snapshots, or those of eight.
template <typename T>
struct Column {
  const T* row;
  int64_t stride;
  KF_INLINE double operator()(int t) const { return widen(row[t * stride]); }
};
template <typename T>
struct EightColumns {
  const T* row;
  int64_t stride;
  KF_INLINE Pack operator()(int t) const { return load(row + t * stride); }
};

// Adds the pairs t .. t + Pairs - 1 of one column or eight, whose weights state(0), state(1) ...
// are from row t on: every sum is loaded and stored once for all of them.
template <bool Increments, int Pairs, typename V, typename State>
KF_INLINE void add_pairs(const State& state, V& squares, V& products) {
  V before = state(0), now = before, square{}, product{};
  if (Increments) {
    const V first = before;
    before = state(1);
    now = before - first;
  }
  for (int t = 1; t <= Pairs; ++t) {
    const V own = state(Increments ? t + 1 : t);
    const V next = Increments ? own - before : own;
    before = own;
    square += now * now;
    product += next * now;
    now = next;
  }
  squares += square;
  products += product;
}

// Meanwhile as many rows are fetched from `ahead`, where they will be read next: tiles are too
// short to be foreseen by the processor.
template <bool Increments, int Pairs, typename T>
KF_INLINE void add_rows(const T* row, int64_t stride, const T* ahead, int64_t columns,
                        double* squares, double* products) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    if (c % kLine == 0)
      for (int t = 0; t < Pairs; ++t) __builtin_prefetch(ahead + t * stride + c, 0, 2);
    Pack square, product;
    __builtin_memcpy(&square, squares + c, sizeof square);
    __builtin_memcpy(&product, products + c, sizeof product);
    add_pairs<Increments, Pairs>(EightColumns<T>{row + c, stride}, square, product);
    __builtin_memcpy(squares + c, &square, sizeof square);
    __builtin_memcpy(products + c, &product, sizeof product);
  }
  for (; c < columns; ++c)
    add_pairs<Increments, Pairs>(Column<T>{row + c, stride}, squares[c], products[c]);
}

template <bool Increments, typename T>
KF_INLINE void add_all(const T* first, int64_t stride, int64_t pairs, int64_t columns,
                       double* squares, double* products) {
  // The last observable of a few pairs is the first of the next: what is read next is one row on.
  constexpr int64_t kAhead = Increments ? 2 : 1;
  int64_t t = 0;
  for (; t + 4 <= pairs; t += 4) {
    const T* row = first + t * stride;
    const T* ahead = t + 8 <= pairs ? row + (4 + kAhead) * stride : first + columns;
    add_rows<Increments, 4>(row, stride, ahead, columns, squares, products);
  }
  for (; t < pairs; ++t)
    add_rows<Increments, 1>(first + t * stride, stride, first + columns + (t % 4) * stride, columns,
                            squares, products);
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

// factor = product / ((1 + ridge) square), moved into the unit circle as asked.
KF_MULTIARCH void bounded_factors(const double* squares, const double* products, int64_t count,
                                  double ridge, Unstable unstable, double* factors) {
  const bool keep = unstable == Unstable::keep, clip = unstable == Unstable::clip;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const double factor = products[i] / ((1 + ridge) * squares[i]);
    const double inside = clip ? (factor > 0 ? 1.0 : -1.0) : 1 / factor;
    factors[i] = !keep & (std::abs(factor) > 1) ? inside : factor;
  }
}

// lambda^e, or 1 + lambda + ... + lambda^(e-1), of every factor: as math/power_by_squaring.h, for
// matrices of order one, a few at a time in registers.
template <bool Sums>
KF_INLINE void power_each(const double* factors, int64_t count, uint64_t exponent, double* out) {
  constexpr int64_t kFew = 32;
  for (int64_t begin = 0; begin < count; begin += kFew) {
    const int64_t own = count - begin < kFew ? count - begin : kFew;
    double square[kFew] = {}, partial[kFew], power[kFew];
    for (int64_t i = 0; i < own; ++i) square[i] = factors[begin + i];
    for (int64_t i = 0; i < kFew; ++i) {
      partial[i] = 1;
      power[i] = Sums ? 0 : 1;
    }
    for (uint64_t left = exponent; left != 0; left >>= 1) {
      if (left & 1u)
        for (int64_t i = 0; i < kFew; ++i)
          power[i] = Sums ? partial[i] + square[i] * power[i] : square[i] * power[i];
      if (Sums)
        for (int64_t i = 0; i < kFew; ++i) partial[i] += square[i] * partial[i];
      for (int64_t i = 0; i < kFew; ++i) square[i] *= square[i];
    }
    for (int64_t i = 0; i < own; ++i) out[begin + i] = power[i];
  }
}

KF_MULTIARCH void whole_powers(const double* factors, int64_t count, uint64_t exponent, bool sums,
                               double* out) {
  if (sums)
    power_each<true>(factors, count, exponent, out);
  else
    power_each<false>(factors, count, exponent, out);
}

// What a tile's weights become at one horizon, from f_T of their factors.
struct Step {
  const double* squares;
  const double* factors;
  const double* powers;
  int64_t count;
  int64_t stride;  // from a row to the next
  double horizon;
};

// The prediction, or w_last's own bits where it does not move: the sign of zero included.
template <bool Increments, typename T>
KF_INLINE void write_each(const Step& step, const T* last, T* out) {
  // As far as the first interval, states are interpolated.
  const double share = !Increments && step.horizon < 1 ? step.horizon : 1;
  const double now_share = 1 - share;
  const bool still = step.horizon == 0;
#pragma omp simd
  for (int64_t i = 0; i < step.count; ++i) {
    const double square = step.squares[i], now = widen(last[i]);
    const double image = step.factors[i] * step.powers[i];
    const double change = Increments ? image * (now - widen(last[i - step.stride])) : 0.0;
    const double state = share < 1 ? now_share * now + share * (image * now) : image * now;
    const double moved = Increments ? now + change : state;
    const bool finite = square - square == 0;
    const bool stays = finite & (still | (square == 0) | (Increments & (change == 0)));
    T next;
    narrow(finite ? moved : kNaN, next);
    out[i] = stays ? last[i] : next;
  }
}

template <typename T>
KF_INLINE void write_tile(const Step& step, bool increments, const T* last, T* out) {
  if (increments)
    write_each<true>(step, last, out);
  else
    write_each<false>(step, last, out);
}

KF_MULTIARCH void write_weights(const Step& step, bool increments, const float* last, float* out) {
  write_tile(step, increments, last, out);
}
KF_MULTIARCH void write_weights(const Step& step, bool increments, const double* last,
                                double* out) {
  write_tile(step, increments, last, out);
}
KF_MULTIARCH void write_weights(const Step& step, bool increments, const Bfloat16* last,
                                Bfloat16* out) {
  write_tile(step, increments, last, out);
}
KF_MULTIARCH void write_weights(const Step& step, bool increments, const Float16* last,
                                Float16* out) {
  write_tile(step, increments, last, out);
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
  for (double* fresh : {squares, factors}) expect_writes(fresh, s.n * sizeof(double));
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(tiles, threads, [&](int64_t tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, s.n - begin);
      double own[kTile] = {}, products[kTile] = {};
      add_moments(s.row<T>(0) + begin, s.row_stride, pairs, count, increments, own, products);
      bounded_factors(own, products, count, ridge, unstable, factors + begin);
      // The last observable counts, too: NaN where it is not finite, or a product overflowed.
      for (int64_t i = 0; i < count; ++i) squares[begin + i] = own[i] + 0 * products[i];
    });
  });
}

void single_weight_predict(const SnapshotView& s, bool increments, const double* squares,
                           const double* factors, const double* horizons, int64_t n_horizons,
                           void* out, int64_t out_stride, int threads) {
  const int64_t tiles = (s.n + kTile - 1) / kTile;
  expect_writes(out, ((n_horizons - 1) * out_stride + s.n) * size_of(s.dtype));
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(tiles, threads, [&](int64_t tile) {
      const int64_t begin = tile * kTile, count = std::min(kTile, s.n - begin);
      const T* last = s.row<T>(s.m - 1) + begin;
      double powers[kTile] = {};
      for (int64_t h = 0; h < n_horizons; ++h) {
        const double horizon = horizons[h];
        const bool between = !increments && horizon < 1;
        if (horizon > 0)
          spectral_factors(factors + begin, count, between ? 1 : horizon, increments, powers);
        write_weights({squares + begin, factors + begin, powers, count, s.row_stride, horizon},
                      increments, last, static_cast<T*>(out) + h * out_stride + begin);
      }
    });
  });
}

}  // namespace koopfast
