// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>

#include "math/pack.h"
#include "math/real_schur.h"

// Eigenvalues and eigenvectors of a general real matrix: its real Schur form, rotations that make
// that complex and triangular, back substitution. Packed matrices go together.
namespace koopfast {

// Complex numbers of packs, matrices of them in two parts.
template <typename V>
struct ComplexParts {
  V *re, *im;
};

// Blocks of two, made triangular by complex rotations. T and Z come in with imaginary parts of
// zero. `values` are T's diagonal: conjugates to the last bit, and real ones with nothing beside.
template <typename V>
KF_INLINE void complex_schur(const ComplexParts<V>& t, const ComplexParts<V>& z, int n,
                             const ComplexParts<V>& values) {
  for (int i = 0; i < n; ++i) {
    values.re[i] = t.re[i * n + i];
    values.im[i] = V{};
  }
  for (int i = 0; i + 1 < n; ++i) {
    const int at = i * n + i;
    const V a = t.re[at], b = t.re[at + 1], c = t.re[at + n], d = t.re[at + n + 1];
    const auto block = magnitude(c) > 0.0;
    if (!any(block)) continue;
    const V half = 0.5 * (a - d), discriminant = half * half + b * c;
    const auto real = !(discriminant < 0.0);
    const V root = square_root(choose(real, discriminant, -discriminant));
    const V larger = half + choose(half < 0.0, -root, root);
    // mu = lambda - d of the first eigenvalue, whose eigenvector is (mu, c).
    const V mu = choose(real, larger, half), turned = choose(real, V{}, root);
    const V safe = choose(magnitude(mu) > 0.0, mu, V{} + 1.0);
    const V second = choose(real, choose(magnitude(mu) > 0.0, d - b * c / safe, d), d + half);
    values.re[i] = choose(block, d + mu, values.re[i]);
    values.im[i] = choose(block, turned, values.im[i]);
    values.re[i + 1] = choose(block, second, values.re[i + 1]);
    values.im[i + 1] = choose(block, -turned, values.im[i + 1]);
    const V length = square_root(choose(block, mu * mu + turned * turned + c * c, V{} + 1.0));
    const V re = choose(block, mu / length, V{} + 1.0), im = choose(block, turned / length, V{});
    const V sine = choose(block, c / length, V{});
    // Rows by [conj(cos), sin; -sin, cos], columns by its adjoint.
    for (int l = i; l < n; ++l) {
      V &xr = t.re[i * n + l], &xi = t.im[i * n + l];
      V &yr = t.re[(i + 1) * n + l], &yi = t.im[(i + 1) * n + l];
      const V pr = re * xr + im * xi + sine * yr, pi = re * xi - im * xr + sine * yi;
      const V qr = re * yr - im * yi - sine * xr, qi = re * yi + im * yr - sine * xi;
      xr = pr;
      xi = pi;
      yr = qr;
      yi = qi;
    }
    for (int l = 0; l < i + 2 + n; ++l) {
      const ComplexParts<V>& own = l < i + 2 ? t : z;
      const int row = (l < i + 2 ? l : l - i - 2) * n + i;
      V &xr = own.re[row], &xi = own.im[row], &yr = own.re[row + 1], &yi = own.im[row + 1];
      const V pr = re * xr - im * xi + sine * yr, pi = re * xi + im * xr + sine * yi;
      const V qr = re * yr + im * yi - sine * xr, qi = re * yi - im * yr - sine * xi;
      xr = pr;
      xi = pi;
      yr = qr;
      yi = qi;
    }
  }
}

// R of T R = R diag(values) for a triangular T, columns of unit length, and R^-1; both triangular.
// Where eigenvalues coincide, R is as badly conditioned as they say.
template <typename V>
KF_INLINE void triangular_eigenvectors(const ComplexParts<V>& t, const ComplexParts<V>& values,
                                       int n, const ComplexParts<V>& r,
                                       const ComplexParts<V>& inverse) {
  V largest = V{} + DBL_MIN;
  for (int i = 0; i < n; ++i) {
    const V size = magnitude(values.re[i]) + magnitude(values.im[i]);
    largest = choose(size > largest, size, largest);
  }
  const V least = DBL_EPSILON * largest;
  for (int j = 0; j < n; ++j) {
    V squares = V{} + 1.0;
    r.re[j * n + j] = V{} + 1.0;
    r.im[j * n + j] = V{};
    for (int i = j - 1; i >= 0; --i) {
      V re{}, im{};
      for (int l = i + 1; l <= j; ++l) {
        const V &tr = t.re[i * n + l], &ti = t.im[i * n + l];
        re += tr * r.re[l * n + j] - ti * r.im[l * n + j];
        im += tr * r.im[l * n + j] + ti * r.re[l * n + j];
      }
      V apart = values.re[j] - values.re[i];
      V aside = values.im[j] - values.im[i];
      const auto together = magnitude(apart) + magnitude(aside) < least;
      apart = choose(together, least, apart);
      aside = choose(together, V{}, aside);
      const V norm = 1.0 / (apart * apart + aside * aside);
      const V own_re = (re * apart + im * aside) * norm, own_im = (im * apart - re * aside) * norm;
      r.re[i * n + j] = own_re;
      r.im[i * n + j] = own_im;
      squares += own_re * own_re + own_im * own_im;
    }
    const V share = 1.0 / square_root(squares);
    for (int i = 0; i <= j; ++i) {
      r.re[i * n + j] *= share;
      r.im[i * n + j] *= share;
    }
    // Column j of the inverse: R's diagonal is real.
    inverse.re[j * n + j] = square_root(squares);
    inverse.im[j * n + j] = V{};
    for (int i = j - 1; i >= 0; --i) {
      V re{}, im{};
      for (int l = i + 1; l <= j; ++l) {
        const V &rr = r.re[i * n + l], &ri = r.im[i * n + l];
        re += rr * inverse.re[l * n + j] - ri * inverse.im[l * n + j];
        im += rr * inverse.im[l * n + j] + ri * inverse.re[l * n + j];
      }
      inverse.re[i * n + j] = -re * inverse.re[i * n + i];
      inverse.im[i * n + j] = -im * inverse.re[i * n + i];
    }
  }
}

// A = V diag(values) V^-1 of `a` (n, n), which is overwritten; `vectors` and `inverse` (n, n) of V,
// columns of unit length, and its Frobenius condition number, infinite or NaN where it is singular.
// `work` holds 6 n*n values. True in the lanes that have converged.
template <typename V>
KF_INLINE Mask<V> general_eigen(V* a, int n, const ComplexParts<V>& values,
                                const ComplexParts<V>& vectors, const ComplexParts<V>& inverse,
                                V* condition, V* work) {
  const int area = n * n;
  V *z = work, *room = work + area;
  hessenberg(a, n, z, room);
  const Mask<V> converged = real_schur(a, z, n);
  const ComplexParts<V> t{a, room}, basis{z, room + area};
  const ComplexParts<V> r{room + 2 * area, room + 3 * area};
  for (int i = 0; i < area; ++i) t.im[i] = basis.im[i] = V{};
  complex_schur(t, basis, n, values);
  // (R^-1 in the place of the vectors, until it has been used.)
  triangular_eigenvectors(t, values, n, r, vectors);
  V squares{};
  for (int i = 0; i < n; ++i)
    for (int j = i; j < n; ++j) {
      const V &re = vectors.re[i * n + j], &im = vectors.im[i * n + j];
      squares += re * re + im * im;
    }
  *condition = square_root(squares * static_cast<double>(n));
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      V re{}, im{};
      for (int l = i; l < n; ++l) {
        const V &ar = vectors.re[i * n + l], &ai = vectors.im[i * n + l];
        const V &br = basis.re[j * n + l], &bi = basis.im[j * n + l];
        re += ar * br + ai * bi;
        im += ai * br - ar * bi;
      }
      inverse.re[i * n + j] = re;
      inverse.im[i * n + j] = im;
    }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      V re{}, im{};
      for (int l = 0; l <= j; ++l) {
        const V &ar = basis.re[i * n + l], &ai = basis.im[i * n + l];
        const V &br = r.re[l * n + j], &bi = r.im[l * n + j];
        re += ar * br - ai * bi;
        im += ar * bi + ai * br;
      }
      vectors.re[i * n + j] = re;
      vectors.im[i * n + j] = im;
    }
  return converged;
}

}  // namespace koopfast
