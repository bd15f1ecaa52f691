// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>
#include <cmath>

#include "host_device.h"

// Small matrices in the hands of a team: one thread of the host, or the 32 lanes of a warp on a
// device, which share memory and meet at sync(). Lane `index` of `size` computes every size-th
// entry; what all need, all compute. An entry is summed in the same order whatever the size of the
// team, only sums over a whole vector are not.
namespace koopfast {

// A team of one.
struct Alone {
  KF_HD int index() const { return 0; }
  KF_HD int size() const { return 1; }
  KF_HD void sync() const {}
  KF_HD double sum(double own) const { return own; }
};

// out = A B of (rows, inner) and (inner, columns), row-major.
template <typename Team>
KF_HD inline void team_multiply(const Team& team, const double* a, const double* b, int rows,
                                int inner, int columns, double* out) {
  for (int e = team.index(); e < rows * columns; e += team.size()) {
    const int i = e / columns, j = e % columns;
    double sum = 0;
    for (int l = 0; l < inner; ++l) sum += a[i * inner + l] * b[l * columns + j];
    out[e] = sum;
  }
  team.sync();
}

// out = A^T B of (inner, rows) and (inner, columns).
template <typename Team>
KF_HD inline void team_multiply_transposed(const Team& team, const double* a, const double* b,
                                           int rows, int inner, int columns, double* out) {
  for (int e = team.index(); e < rows * columns; e += team.size()) {
    const int i = e / columns, j = e % columns;
    double sum = 0;
    for (int l = 0; l < inner; ++l) sum += a[l * rows + i] * b[l * columns + j];
    out[e] = sum;
  }
  team.sync();
}

// As divide_nearly_diagonal of small_matrix.h.
template <typename Team>
KF_HD inline void team_divide(const Team& team, const double* b, const double* d,
                              const double* inverse, int rows, int k, double* out, double* work) {
  for (int e = team.index(); e < rows * k; e += team.size()) out[e] = b[e] * inverse[e % k];
  team.sync();
  team_multiply(team, out, d, rows, k, k, work);
  for (int e = team.index(); e < rows * k; e += team.size())
    out[e] += (b[e] - work[e]) * inverse[e % k];
  team.sync();
}

// As certainly_stable of stability.h, with as many doublings as asked for. `work` holds 2 k*k
// values.
template <typename Team>
KF_HD inline bool team_certainly_stable(const Team& team, const double* a, int k, int doublings,
                                        double* work) {
  constexpr double kHopeless = 1e3;
  double *power = work, *next = work + k * k;
  for (int e = team.index(); e < k * k; e += team.size()) power[e] = a[e];
  team.sync();
  for (int doubling = 0;; ++doubling) {
    double squares = 0;
    for (int e = team.index(); e < k * k; e += team.size()) squares += power[e] * power[e];
    squares = team.sum(squares);
    if (squares <= 1) return true;
    if (doubling == doublings || !(squares < kHopeless * kHopeless)) return false;
    team_multiply(team, power, power, k, k, k, next);
    double* const last = power;
    power = next;
    next = last;
  }
}

}  // namespace koopfast
