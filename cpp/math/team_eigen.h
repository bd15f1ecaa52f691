// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/team.h"

// symmetric_eigen.h for a team: Householder tridiagonalisation, then implicit QL with Wilkinson's
// shift (Golub & Van Loan 2013, sections 8.3.1 and 8.3.5). A lane owns columns of every matrix, so
// that neighbours read neighbouring memory, and the rotations of QL need no meeting but the one
// that guards the tridiagonal matrix, which all lanes read and the first one writes.
namespace koopfast {

constexpr int kMostTeamIterations = 60;  // for one eigenvalue; two are usual

// T = Q A Q^T: `diagonal` (n), `beside` (n) with beside[i] next to i and i+1, and Q by rows. `a`
// (n, n), both triangles, is overwritten; `work` holds n values.
template <typename Team>
KF_HD inline void team_tridiagonalise(const Team& team, double* a, int n, double* diagonal,
                                      double* beside, double* q, double* work) {
  const int own = team.index(), lanes = team.size();
  for (int e = own; e < n * n; e += lanes) q[e] = e / n == e % n ? 1 : 0;
  team.sync();
  for (int j = 0; j + 2 < n; ++j) {
    // v lies in row j right of the diagonal.
    double* v = a + j * n;
    double below = 0;
    for (int i = j + 2 + own; i < n; i += lanes) below += v[i] * v[i];
    below = team.sum(below);
    const double head = v[j + 1], norm = sqrt(head * head + below);
    const double end = head > 0 ? -norm : norm;
    // Squares this small would not have a finite inverse. Entries are at most 1.
    const bool nothing = !(below > DBL_MIN / DBL_EPSILON);
    const double first = nothing ? 1 : head - end;
    const double tau = nothing ? 0 : 2 / (below + first * first);
    team.sync();
    if (own == 0) {
      beside[j] = nothing ? head : end;
      v[j + 1] = first;
    }
    team.sync();
    // A22 -= v w^T + w v^T with p = tau A22 v, w = p - (tau/2) (p^T v) v.
    double product = 0;
    for (int l = own; l < n; l += lanes) {
      if (l <= j) continue;
      double sum = 0;
      for (int i = j + 1; i < n; ++i) sum += a[i * n + l] * v[i];
      work[l] = tau * sum;
      product += work[l] * v[l];
    }
    const double half = 0.5 * tau * team.sum(product);
    for (int l = own; l < n; l += lanes)
      if (l > j) work[l] -= half * v[l];
    team.sync();
    for (int l = own; l < n; l += lanes) {
      if (l <= j) continue;
      const double vl = v[l], wl = work[l];
      for (int i = j + 1; i < n; ++i) a[i * n + l] -= v[i] * wl + work[i] * vl;
    }
    if (own == 0) {
      diagonal[j] = v[j];
      v[j] = tau;  // its place is free now: kept for the product below
    }
    team.sync();
  }
  if (own == 0)
    for (int j = n > 2 ? n - 2 : 0; j < n; ++j) {
      diagonal[j] = a[j * n + j];
      beside[j] = j + 1 < n ? a[j * n + j + 1] : 0;
    }
  // Q^T = H_0 H_1 ..., the last reflector first: each turns only rows and columns behind its own.
  for (int j = n - 3; j >= 0; --j) {
    const double* v = a + j * n;
    for (int l = own; l < n; l += lanes) {
      if (l <= j) continue;
      double sum = 0;
      for (int i = j + 1; i < n; ++i) sum += q[i * n + l] * v[i];
      sum *= v[j];
      for (int i = j + 1; i < n; ++i) q[i * n + l] -= sum * v[i];
    }
  }
  team.sync();
  for (int e = own; e < n * n; e += lanes) {
    const int i = e / n, l = e % n;
    if (i >= l) continue;
    const double upper = q[e];
    q[e] = q[l * n + i];
    q[l * n + i] = upper;
  }
  team.sync();
}

// Eigenvalues of the tridiagonal matrix into `diagonal`, in no order; the rows of `vectors` are
// turned alike. Whether it converged.
template <typename Team>
KF_HD inline bool team_implicit_ql(const Team& team, double* diagonal, double* beside,
                                   double* vectors, int n) {
  const int own = team.index(), lanes = team.size();
  for (int l = 0; l < n; ++l) {
    for (int iteration = 0;; ++iteration) {
      // The matrix splits at the first m >= l whose neighbour is negligible.
      int top = l;
      while (top + 1 < n &&
             !(fabs(beside[top]) <= DBL_EPSILON * (fabs(diagonal[top]) + fabs(diagonal[top + 1]))))
        ++top;
      if (top == l) break;
      if (iteration == kMostTeamIterations) return false;
      // Wilkinson's shift.
      double g = (diagonal[l + 1] - diagonal[l]) / (2 * beside[l]);
      const double root = sqrt(g * g + 1);
      g = diagonal[top] - diagonal[l] + beside[l] / (g + (g < 0 ? -root : root));
      double s = 1, c = 1, p = 0;
      for (int i = top - 1; i >= l; --i) {
        const double f = s * beside[i], b = c * beside[i], squares = f * f + g * g;
        // f = g = 0: any rotation will do.
        const double length = sqrt(squares), inverse = squares > 0 ? 1 / length : 0;
        s = f * inverse;
        c = squares > 0 ? g * inverse : 1;
        const double high = diagonal[i + 1] - p, turn = (diagonal[i] - high) * s + 2 * c * b;
        p = s * turn;
        g = c * turn - b;
        team.sync();  // all have read what is written now
        if (own == 0) {
          beside[i + 1] = length;
          diagonal[i + 1] = high + p;
        }
        double *lower = vectors + i * n, *upper = lower + n;
        for (int k = own; k < n; k += lanes) {
          const double old = upper[k];
          upper[k] = s * lower[k] + c * old;
          lower[k] = c * lower[k] - s * old;
        }
      }
      team.sync();
      if (own == 0) {
        diagonal[l] -= p;
        beside[l] = g;
        beside[top] = 0;
      }
      team.sync();
    }
  }
  return true;
}

// A = W^T diag(values) W of a symmetric `a` (n, n), both triangles, which is overwritten. Row i of
// `vectors` belongs to values[i]; there is no order. `work` holds 2 n values. The largest entry
// must be about 1. Whether it converged.
template <typename Team>
KF_HD inline bool team_symmetric_eigen(const Team& team, double* a, int n, double* values,
                                       double* vectors, double* work) {
  double* beside = work + n;
  team_tridiagonalise(team, a, n, values, beside, vectors, work);
  const bool converged = team_implicit_ql(team, values, beside, vectors, n);
  team.sync();
  return converged;
}

}  // namespace koopfast
