// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "math/spectral_factor.h"
#include "math/team.h"

// Eigenvalues and eigenvectors of a general real matrix by a team: Householder reduction to
// Hessenberg form, then the complex QR algorithm with Wilkinson's shift (Golub & Van Loan 2013,
// sections 7.4 and 7.5), one complex shift at a time, since matrices are small and complex
// arithmetic is the simpler one to share out.
namespace koopfast {

KF_HD inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
KF_HD inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
KF_HD inline Complex conjugate(Complex a) { return {a.re, -a.im}; }
KF_HD inline double size_of(Complex a) { return fabs(a.re) + fabs(a.im); }

KF_HD inline Complex square_root(Complex a) {
  const double modulus = hypot(a.re, a.im);
  if (modulus == 0) return {0, 0};
  const double half = sqrt(0.5 * (modulus + fabs(a.re)));
  if (a.re >= 0) return {half, a.im / (2 * half)};
  return {fabs(a.im) / (2 * half), a.im < 0 ? -half : half};
}

// A = Z H Z^T with H Hessenberg: into `h` and `z` (n, n). `a` is overwritten, `q` and `v` are room.
template <typename Team>
KF_HD inline void team_hessenberg(const Team& team, double* a, double* q, double* v, int n,
                                  Complex* h, Complex* z) {
  const int own = team.index(), lanes = team.size();
  for (int e = own; e < n * n; e += lanes) q[e] = e / n == e % n ? 1 : 0;
  team.sync();
  for (int j = 0; j + 2 < n; ++j) {
    double below = 0;
    for (int i = j + 2 + own; i < n; i += lanes) below += a[i * n + j] * a[i * n + j];
    below = team.sum(below);
    if (!(below > DBL_MIN / DBL_EPSILON)) continue;
    const double head = a[(j + 1) * n + j], norm = sqrt(head * head + below);
    const double first = head > 0 ? head + norm : head - norm;
    const double tau = 2 / (below + first * first);
    for (int i = j + 1 + own; i < n; i += lanes) v[i] = i == j + 1 ? first : a[i * n + j];
    team.sync();
    for (int c = own; c < n; c += lanes) {
      double sum = 0;
      for (int i = j + 1; i < n; ++i) sum += v[i] * a[i * n + c];
      for (int i = j + 1; i < n; ++i) a[i * n + c] -= tau * sum * v[i];
    }
    team.sync();
    for (int r = own; r < 2 * n; r += lanes) {
      double* row = r < n ? a + r * n : q + (r - n) * n;
      double sum = 0;
      for (int c = j + 1; c < n; ++c) sum += row[c] * v[c];
      for (int c = j + 1; c < n; ++c) row[c] -= tau * sum * v[c];
    }
    team.sync();
  }
  for (int e = own; e < n * n; e += lanes) {
    h[e] = {e / n > e % n + 1 ? 0 : a[e], 0};
    z[e] = {q[e], 0};
  }
  team.sync();
}

// One QR step of rows and columns low .. top: H - s = Q R, then R Q + s, and Z Q. `turns` holds 2
// n.
template <typename Team>
KF_HD inline void team_qr_step(const Team& team, Complex* h, Complex* z, int n, int low, int top,
                               Complex shift, Complex* turns) {
  const int own = team.index(), lanes = team.size();
  team.sync();
  for (int i = low + own; i <= top; i += lanes) h[i * n + i] = h[i * n + i] - shift;
  team.sync();
  for (int i = low; i < top; ++i) {
    Complex *upper = h + i * n, *lower = upper + n;
    const Complex f = upper[i], g = lower[i];
    const double length = hypot(hypot(f.re, f.im), hypot(g.re, g.im));
    const Complex a = length > 0 ? Complex{f.re / length, f.im / length} : Complex{1, 0};
    const Complex b = length > 0 ? Complex{g.re / length, g.im / length} : Complex{0, 0};
    team.sync();
    if (own == 0) {
      turns[2 * i] = a;
      turns[2 * i + 1] = b;
    }
    for (int c = own; c < n; c += lanes) {
      if (c < i) continue;
      const Complex x = upper[c], y = lower[c];
      upper[c] = conjugate(a) * x + conjugate(b) * y;
      lower[c] = a * y - b * x;
    }
    team.sync();
  }
  for (int r = own; r < 2 * n; r += lanes)
    for (int i = low; i < top; ++i) {
      if (r < n && r > i + 1) continue;
      Complex* row = (r < n ? h + r * n : z + (r - n) * n) + i;
      const Complex a = turns[2 * i], b = turns[2 * i + 1], x = row[0], y = row[1];
      row[0] = x * a + y * b;
      row[1] = conjugate(a) * y - conjugate(b) * x;
    }
  team.sync();
  for (int i = low + own; i <= top; i += lanes) h[i * n + i] = h[i * n + i] + shift;
  team.sync();
}

// H, Hessenberg, to triangular form in place, Z alike. Whether it converged.
template <typename Team>
KF_HD inline bool team_triangular(const Team& team, Complex* h, Complex* z, int n, Complex* turns) {
  constexpr int kMost = 60;  // steps for one eigenvalue
  int steps = 0;
  for (int top = n - 1; top > 0;) {
    int low = top;
    while (low > 0 &&
           size_of(h[low * n + low - 1]) >
               DBL_EPSILON * (size_of(h[(low - 1) * n + low - 1]) + size_of(h[low * n + low])))
      --low;
    if (low == top) {
      --top;
      steps = 0;
      continue;
    }
    if (++steps > kMost || !(size_of(h[top * n + top]) <= DBL_MAX)) return false;
    // The eigenvalue of the last 2 x 2 that is nearer to its last entry; now and then another one.
    const Complex a = h[(top - 1) * n + top - 1], b = h[(top - 1) * n + top];
    const Complex c = h[top * n + top - 1], d = h[top * n + top];
    const Complex half = {0.5 * (a.re - d.re), 0.5 * (a.im - d.im)};
    Complex root = square_root(half * half + b * c);
    if (half.re * root.re + half.im * root.im < 0) root = Complex{0, 0} - root;
    const Complex away = half + root;
    Complex shift = size_of(away) > 0 ? d - b * c / away : d;
    if (steps % 10 == 0) shift = d + Complex{size_of(c), 0};
    team_qr_step(team, h, z, n, low, top, shift, turns);
  }
  return true;
}

// Eigenvectors of a triangular T by columns into `y`, those of A = Z T Z^H into `v`, of unit
// length.
template <typename Team>
KF_HD inline void team_eigenvectors(const Team& team, const Complex* t, const Complex* z, int n,
                                    Complex* y, Complex* v) {
  const int own = team.index(), lanes = team.size();
  double scale = DBL_MIN;
  for (int i = 0; i < n; ++i) scale = size_of(t[i * n + i]) > scale ? size_of(t[i * n + i]) : scale;
  for (int j = own; j < n; j += lanes) {
    y[j * n + j] = {1, 0};
    for (int i = j - 1; i >= 0; --i) {
      Complex sum{0, 0};
      for (int l = i + 1; l <= j; ++l) sum = sum + t[i * n + l] * y[l * n + j];
      Complex apart = t[j * n + j] - t[i * n + i];
      if (size_of(apart) < DBL_EPSILON * scale) apart = {DBL_EPSILON * scale, 0};
      y[i * n + j] = sum / apart;
    }
    double squares = 0;
    for (int r = 0; r < n; ++r) {
      Complex sum{0, 0};
      for (int i = 0; i <= j; ++i) sum = sum + z[r * n + i] * y[i * n + j];
      v[r * n + j] = sum;
      squares += sum.re * sum.re + sum.im * sum.im;
    }
    const double length = sqrt(squares);
    for (int r = 0; r < n; ++r) v[r * n + j] = {v[r * n + j].re / length, v[r * n + j].im / length};
  }
  team.sync();
}

// out = V^-1 by Gauss and Jordan with row pivots; `w` (n, n) and `factors` (n) are room. NaN or
// infinities where V is singular.
template <typename Team>
KF_HD inline void team_invert(const Team& team, const Complex* v, int n, Complex* w,
                              Complex* factors, Complex* out) {
  const int own = team.index(), lanes = team.size();
  for (int e = own; e < n * n; e += lanes) {
    w[e] = v[e];
    out[e] = {e / n == e % n ? 1.0 : 0.0, 0};
  }
  team.sync();
  for (int c = 0; c < n; ++c) {
    int pivot = c;
    for (int r = c + 1; r < n; ++r)
      if (size_of(w[r * n + c]) > size_of(w[pivot * n + c])) pivot = r;
    const Complex head = w[pivot * n + c];
    team.sync();
    for (int k = own; k < 2 * n; k += lanes) {
      Complex* column = (k < n ? w : out) + k % n;
      const Complex chosen = column[pivot * n];
      column[pivot * n] = column[c * n];
      column[c * n] = chosen / head;
    }
    team.sync();
    for (int r = own; r < n; r += lanes) factors[r] = r == c ? Complex{0, 0} : w[r * n + c];
    team.sync();
    for (int k = own; k < 2 * n; k += lanes) {
      Complex* column = (k < n ? w : out) + k % n;
      for (int r = 0; r < n; ++r) column[r * n] = column[r * n] - factors[r] * column[c * n];
    }
    team.sync();
  }
}

}  // namespace koopfast
