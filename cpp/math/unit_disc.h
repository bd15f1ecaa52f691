// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/small_fit.h"
#include "math/team_eigenbasis.h"

// What operator_spectrum.cpp does with the blocks that are not certainly stable, by a team.
namespace koopfast {

// An eigenbasis worse conditioned than this loses more digits than repeated squaring does (as
// solvers.h has it).
constexpr double kTeamConditionLimit = 1e6;

KF_HD inline int64_t unit_disc_workspace(int64_t rank) { return 12 * rank * rank + 7 * rank; }

// Moves the eigenvalues of fitted block i that lie outside the unit circle, in its operator and its
// lift of `rows` rows, as `move_to_unit_disc` of reduced_operator.h, and stores the eigenbasis.
// Left unbounded, for the host, where the QR algorithm does not converge.
template <typename Team>
KF_HD inline void team_bound_spectrum(const Team& team, const OperatorArrays& out, int64_t i,
                                      int64_t rows, Unstable unstable, double* work) {
  const int k = static_cast<int>(out.rank[i]), area = k * k;
  const int own = team.index(), lanes = team.size();
  auto* matrices = reinterpret_cast<Complex*>(work);
  Complex *h = matrices, *z = h + area, *y = z + area, *inverse = y + area;
  Complex *turns = inverse + area, *factors = turns + 2 * k;
  double *a = reinterpret_cast<double*>(factors + k), *q = a + area, *p = q + area;
  double* v = p + area;
  double* op = out.operators + out.matrix_offsets[i];
  double* lift = out.lifts + out.lift_offsets[i];
  auto* values = reinterpret_cast<Complex*>(out.eigenvalues + 2 * out.vector_offsets[i]);
  auto* vectors = reinterpret_cast<Complex*>(out.eigenvectors + 2 * out.matrix_offsets[i]);
  auto* amplitudes = reinterpret_cast<Complex*>(out.amplitudes + 2 * out.vector_offsets[i]);
  const double* start = out.start + out.vector_offsets[i];

  for (int e = own; e < area; e += lanes) a[e] = op[e];
  team.sync();
  team_hessenberg(team, a, q, v, k, h, z);
  if (!team_triangular(team, h, z, k, turns)) return;
  team_eigenvectors(team, h, z, k, y, vectors);
  team_invert(team, vectors, k, y, factors, inverse);
  double here = 0, there = 0, largest = 1;
  for (int e = own; e < area; e += lanes) {
    here += vectors[e].re * vectors[e].re + vectors[e].im * vectors[e].im;
    there += inverse[e].re * inverse[e].re + inverse[e].im * inverse[e].im;
  }
  const bool usable = sqrt(team.sum(here)) * sqrt(team.sum(there)) < kTeamConditionLimit;
  for (int j = 0; j < k; ++j) {
    const double modulus = hypot(h[j * k + j].re, h[j * k + j].im);
    largest = modulus > largest ? modulus : largest;
  }
  if (unstable == Unstable::damp) largest *= largest;
  const auto divisor = [&](int j) {
    const double modulus = hypot(h[j * k + j].re, h[j * k + j].im);
    if (largest == 1 || !(modulus > 1)) return usable ? 1.0 : largest;
    return !usable ? largest : unstable == Unstable::damp ? modulus * modulus : modulus;
  };
  for (int j = own; j < k; j += lanes)
    values[j] = {h[j * k + j].re / divisor(j), h[j * k + j].im / divisor(j)};
  if (usable && largest > 1) {
    // A P and Phi P with P = V diag(1 / divisor) V^-1; P - I leaves stable directions alone.
    for (int e = own; e < area; e += lanes) {
      double sum = 0;
      for (int j = 0; j < k; ++j)
        sum += (1 / divisor(j) - 1) * (vectors[e / k * k + j] * inverse[j * k + e % k]).re;
      p[e] = sum;
    }
    team.sync();
    team_multiply(team, op, p, k, k, k, a);
    for (int e = own; e < area; e += lanes) op[e] += a[e];
    for (int64_t r = 0; r < rows; ++r) {
      double* row = lift + r * k;
      for (int j = own; j < k; j += lanes) {
        v[j] = 0;
        for (int l = 0; l < k; ++l) v[j] += row[l] * p[l * k + j];
      }
      team.sync();
      for (int j = own; j < k; j += lanes) row[j] += v[j];
      team.sync();
    }
  } else if (largest > 1) {
    for (int e = own; e < area; e += lanes) op[e] /= largest;
    for (int64_t e = own; e < rows * k; e += lanes) lift[e] /= largest;
  }
  for (int j = own; usable && j < k; j += lanes) {
    Complex sum{0, 0};
    for (int l = 0; l < k; ++l) sum = sum + inverse[j * k + l] * Complex{start[l], 0};
    amplitudes[j] = sum;
  }
  team.sync();
  if (own == 0)
    out.spectrum[i] = static_cast<int32_t>(usable ? Spectrum::usable : Spectrum::unusable);
}

}  // namespace koopfast
