// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/power_by_squaring.h"
#include "math/spectral_factor.h"
#include "math/team.h"
#include "operator_power.h"

// Powers of one block's operator by a team, for the device: what operator_power.cpp does, for whole
// horizons of snapshots that are not averaged. Fractions, limits and averages are the host's.
namespace koopfast {

// Doubles that the powers of an operator of this rank work with.
KF_HD inline int64_t block_power_workspace(int64_t rank, int64_t n_horizons) {
  return 2 * rank * rank + (n_horizons + 4) * rank;
}

// As power_by_squaring of power_by_squaring.h: the powers (n_horizons, k) of all horizons, which
// share their squares. `exponent(h)` is that of a horizon.
template <typename Team, typename Exponent>
KF_HD inline void team_power(const Team& team, const double* a, const double* v, int k,
                             const Exponent& exponent, int64_t n_horizons, bool sums, double* out,
                             double* work) {
  const int own = team.index(), lanes = team.size();
  double *square = work, *next = work + k * k, *partial = next + k * k, *image = partial + k;
  int levels = 0;
  for (int64_t h = 0; h < n_horizons; ++h) {
    for (int i = own; i < k; i += lanes) out[h * k + i] = sums ? 0 : v[i];
    const int needed = squarings(k, exponent(h));
    levels = needed > levels ? needed : levels;
  }
  for (int e = own; e < k * k; e += lanes) square[e] = a[e];
  for (int i = own; i < k; i += lanes) partial[i] = sums ? v[i] : 0;
  team.sync();
  for (int level = 0;; ++level) {
    for (int64_t h = 0; h < n_horizons; ++h) {
      const int needed = squarings(k, exponent(h));
      if (level > needed) continue;
      const uint64_t left = exponent(h) >> level;
      for (uint64_t step = level < needed ? left & 1u : left; step > 0; --step) {
        double* y = out + h * k;
        team_multiply(team, square, y, k, k, 1, image);
        for (int i = own; i < k; i += lanes) y[i] = partial[i] + image[i];
        team.sync();
      }
    }
    if (level == levels) return;
    if (sums) {
      team_multiply(team, square, partial, k, k, 1, image);
      for (int i = own; i < k; i += lanes) partial[i] += image[i];
    }
    team_multiply(team, square, square, k, k, k, next);
    double* const last = square;
    square = next;
    next = last;
  }
}

// Re(V diag(f_T(lambda)) b) of eigenvectors V and amplitudes b.
template <typename Team>
KF_HD inline void team_power_by_eigenbasis(const Team& team, const FittedBlocks& fits, int64_t i,
                                           int k, double horizon, double* out, double* factors) {
  const double* values = fits.eigenvalues + 2 * fits.vector_offsets[i];
  const double* amplitudes = fits.amplitudes + 2 * fits.vector_offsets[i];
  const double* vectors = fits.eigenvectors + 2 * fits.matrix_offsets[i];
  for (int j = team.index(); j < k; j += team.size()) {
    const Complex lambda{values[2 * j], values[2 * j + 1]};
    const Complex f =
        fits.increments[i] != 0 ? geometric_sum(lambda, horizon) : spectral_power(lambda, horizon);
    const Complex own = f * Complex{amplitudes[2 * j], amplitudes[2 * j + 1]};
    factors[2 * j] = own.re;
    factors[2 * j + 1] = own.im;
  }
  team.sync();
  for (int r = team.index(); r < k; r += team.size()) {
    double sum = 0;
    for (int j = 0; j < k; ++j)
      sum += vectors[2 * (r * k + j)] * factors[2 * j] -
             vectors[2 * (r * k + j) + 1] * factors[2 * j + 1];
    out[r] = sum;
  }
  team.sync();
}

// `values` (n_horizons, rows) and `base` (n_horizons,) of block i, as operator_power gives them, at
// whole finite horizons. `work` holds block_power_workspace.
template <typename Team>
KF_HD inline void power_block(const Team& team, const FittedBlocks& fits, int64_t i, int64_t rows,
                              bool dual, const double* horizons, int64_t n_horizons, double* values,
                              double* base, double* work) {
  const int own = team.index(), lanes = team.size();
  const auto status = static_cast<BlockStatus>(fits.status[i]);
  const bool increments = fits.increments[i] != 0, ok = status == BlockStatus::ok;
  const int k = ok ? static_cast<int>(fits.rank[i]) : 0;
  double *powers = work, *rest = work + n_horizons * k;
  if (ok && static_cast<Spectrum>(fits.spectrum[i]) == Spectrum::usable) {
    for (int64_t h = 0; h < n_horizons; ++h)
      team_power_by_eigenbasis(team, fits, i, k, horizons[h], powers + h * k, rest);
  } else if (ok) {
    const auto exponent = [&](int64_t h) {
      return static_cast<uint64_t>(horizons[h] - (increments || horizons[h] == 0 ? 0 : 1));
    };
    team_power(team, fits.operators + fits.matrix_offsets[i], fits.start + fits.vector_offsets[i],
               k, exponent, n_horizons, increments, powers, rest);
  }
  const double* lift = fits.lifts + fits.lift_offsets[i];
  for (int64_t h = 0; h < n_horizons; ++h) {
    const bool moves = ok && horizons[h] != 0;
    double total = 0;
    for (int64_t r = own; r < rows; r += lanes) {
      double sum = 0;
      for (int j = 0; moves && j < k; ++j) sum += lift[r * k + j] * powers[h * k + j];
      values[h * rows + r] = sum;
      total += sum;
    }
    total = team.sum(total);
    // Coefficients of states stand for whole weights: what they sum to belongs to w_last.
    const double share = !moves       ? (status == BlockStatus::non_finite ? nan("") : 1)
                         : increments ? 1
                         : dual       ? total
                                      : 0;
    if (own == 0) base[h] = share;
  }
  team.sync();
}

}  // namespace koopfast
