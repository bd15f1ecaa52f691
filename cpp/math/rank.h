// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"

// How many directions a fit keeps, from the singular values of F, descending.
namespace koopfast {

KF_HD inline int64_t count_above(const double* sigma, int64_t count, double share, int64_t limit) {
  if (count == 0 || !(sigma[0] > 0)) return 0;
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += sigma[i] > share * sigma[0];
  return above < limit ? above : limit;
}

// Smallest rank whose squared singular values sum to this share of all of them.
KF_HD inline int64_t count_of_energy(const double* sigma, int64_t count, double share) {
  double all = 0, sum = 0;
  for (int64_t i = 0; i < count; ++i) all += sigma[i] * sigma[i];
  for (int64_t i = 0; i < count; ++i)
    if ((sum += sigma[i] * sigma[i]) >= share * all) return i + 1;
  return count;
}

// Optimal hard threshold for unknown noise (Gavish & Donoho 2014, section III.E): omega(beta)
// times the median singular value, omega by their cubic fit; beta <= 1 is the aspect ratio.
KF_HD inline int64_t count_of_signal(const double* sigma, int64_t count, double beta) {
  const double median = 0.5 * (sigma[(count - 1) / 2] + sigma[count / 2]);
  const double omega = ((0.56 * beta - 0.95) * beta + 1.82) * beta + 1.43;
  int64_t signal = 0;
  for (int64_t i = 0; i < count; ++i) signal += sigma[i] > omega * median;
  return signal;
}

// The rank k that is kept; F has `full_rows` rows of observables and `columns` pairs.
KF_HD inline int64_t chosen_rank(const double* sigma, int64_t count, int64_t full_rows,
                                 int64_t columns, const FitOptions& options, int64_t limit) {
  const int64_t above = count_above(sigma, count, options.tolerance, limit);
  int64_t most = above;
  if (above > 0 && options.rank_rule == RankRule::energy)
    most = count_of_energy(sigma, count, options.energy);
  if (above > 0 && options.rank_rule == RankRule::gavish_donoho) {
    const double rows = static_cast<double>(full_rows), pairs = static_cast<double>(columns);
    most = count_of_signal(sigma, count, rows < pairs ? rows / pairs : pairs / rows);
  }
  return most < above ? most : above;
}

}  // namespace koopfast
