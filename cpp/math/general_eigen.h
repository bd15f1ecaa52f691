// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cfloat>

#include "math/pack.h"

// Eigenvalues and eigenvectors of a general real matrix: Householder reduction to Hessenberg form,
// Francis's double-shift QR steps to real Schur form (Golub & Van Loan 2013, sections 7.4 and 7.5),
// rotations that make it complex and triangular, back substitution. Packed matrices step together:
// where a lane has split further, or is done, its reflections are the identity.
namespace koopfast {

constexpr int kMostFrancisSteps = 40;  // for one or two eigenvalues; four or so are usual

// Complex numbers of packs, matrices of them in two parts.
template <typename V>
struct ComplexParts {
  V *re, *im;
};

// I - tau v v^T that takes (p, q, r) to (end, 0, 0): v = (first, q, r).
template <typename V>
struct Reflection {
  V first, tau, end;
};

template <typename V>
KF_INLINE Reflection<V> reflection(const V& p, const V& below) {
  // Squares this small would not have a finite inverse.
  const auto nothing = !(below > DBL_MIN / DBL_EPSILON);
  const V norm = square_root(p * p + below);
  const V end = choose(p > 0.0, -norm, norm);
  const V first = p - end;
  const V safe = choose(nothing, V{} + 1.0, below + first * first);
  return {first, choose(nothing, V{}, 2.0 / safe), choose(nothing, p, end)};
}

// A = Z H Z^T: H, Hessenberg, in the place of `a` (n, n), and Z into `z`. `v` holds 2 n values.
template <typename V>
KF_INLINE void hessenberg(V* a, int n, V* z, V* v) {
  for (int i = 0; i < n * n; ++i) z[i] = V{};
  for (int i = 0; i < n; ++i) z[i * n + i] += 1.0;
  V* sums = v + n;
  for (int j = 0; j + 2 < n; ++j) {
    V below{};
    for (int i = j + 2; i < n; ++i) below += a[i * n + j] * a[i * n + j];
    const Reflection<V> own = reflection(a[(j + 1) * n + j], below);
    v[j + 1] = own.first;
    a[(j + 1) * n + j] = own.end;
    for (int i = j + 2; i < n; ++i) {
      v[i] = a[i * n + j];
      a[i * n + j] = V{};
    }
    for (int c = j + 1; c < n; ++c) sums[c] = V{};
    for (int i = j + 1; i < n; ++i)
      for (int c = j + 1; c < n; ++c) sums[c] += v[i] * a[i * n + c];
    for (int i = j + 1; i < n; ++i) {
      const V share = own.tau * v[i];
      for (int c = j + 1; c < n; ++c) a[i * n + c] -= share * sums[c];
    }
    for (int r = 0; r < 2 * n; ++r) {
      V* row = r < n ? a + r * n : z + (r - n) * n;
      V sum{};
      for (int c = j + 1; c < n; ++c) sum += row[c] * v[c];
      sum *= own.tau;
      for (int c = j + 1; c < n; ++c) row[c] -= sum * v[c];
    }
  }
}

// One double-shift step of rows and columns low .. top of every lane with top > low + 1; shifts of
// sum `trace` and product `determinant`.
template <typename V>
KF_INLINE void francis_step(V* h, V* z, int n, const V& low, const V& top, const V& trace,
                            const V& determinant) {
  const auto active = top > low + 1.0;
  const int first = -static_cast<int>(largest_lane(choose(active, -low, V{} - n)));
  const int last = static_cast<int>(largest_lane(choose(active, top, V{})));
  for (int k = first; k < last; ++k) {
    V *row0 = h + k * n, *row1 = row0 + n, *row2 = row1 + n;
    const bool third = k + 2 < n;
    const double here = k;
    const auto starts = active & (low == here), goes_on = active & (low < here) & (top > here);
    const V corner = row0[k], under = row1[k];
    V p = corner * corner + row0[k + 1] * under - trace * corner + determinant;
    V q = under * (corner + row1[k + 1] - trace);
    V r = third ? under * row2[k + 1] : V{};
    if (k > 0) {
      p = choose(starts, p, row0[k - 1]);
      q = choose(starts, q, row1[k - 1]);
      r = choose(starts, r, third ? row2[k - 1] : V{});
    }
    const auto within = starts | goes_on;
    q = choose(within, q, V{});
    r = choose(within & (top > here + 1.0), r, V{});
    const Reflection<V> own = reflection(p, q * q + r * r);
    const V t0 = own.tau * own.first, t1 = own.tau * q, t2 = own.tau * r;
    if (k > 0) {
      row0[k - 1] = choose(goes_on, own.end, row0[k - 1]);
      row1[k - 1] = choose(goes_on, V{}, row1[k - 1]);
      if (third) row2[k - 1] = choose(goes_on, V{}, row2[k - 1]);
    }
    if (third) {
      for (int c = k; c < n; ++c) {
        const V sum = own.first * row0[c] + q * row1[c] + r * row2[c];
        row0[c] -= t0 * sum;
        row1[c] -= t1 * sum;
        row2[c] -= t2 * sum;
      }
      const int rows = (k + 3 < n ? k + 4 : n);
      for (int i = 0; i < rows + n; ++i) {
        V* own_row = (i < rows ? h + i * n : z + (i - rows) * n) + k;
        const V sum = own.first * own_row[0] + q * own_row[1] + r * own_row[2];
        own_row[0] -= t0 * sum;
        own_row[1] -= t1 * sum;
        own_row[2] -= t2 * sum;
      }
      continue;
    }
    for (int c = k; c < n; ++c) {
      const V sum = own.first * row0[c] + q * row1[c];
      row0[c] -= t0 * sum;
      row1[c] -= t1 * sum;
    }
    for (int i = 0; i < 2 * n; ++i) {
      V* own_row = (i < n ? h + i * n : z + (i - n) * n) + k;
      const V sum = own.first * own_row[0] + q * own_row[1];
      own_row[0] -= t0 * sum;
      own_row[1] -= t1 * sum;
    }
  }
}

// H, Hessenberg, to real Schur form in place, Z alike: blocks of one or two on the diagonal, below
// which there are zeros. True in the lanes that have converged.
template <typename V>
KF_INLINE Mask<V> real_schur(V* h, V* z, int n) {
  V top = V{} + (n - 1.0), steps{};
  Mask<V> failed = V{} > 0.0;
  for (;;) {
    V low{};
    for (auto deflated = top > 0.0; any(deflated);) {
      low = V{};
      const int last = static_cast<int>(largest_lane(top));
      for (int i = 1; i <= last; ++i) {
        V& beside = h[i * n + i - 1];
        const V scale = magnitude(h[(i - 1) * n + i - 1]) + magnitude(h[i * n + i]);
        const double here = i;
        const auto splits = (magnitude(beside) <= DBL_EPSILON * scale) & (top > here - 1.0);
        beside = choose(splits, V{}, beside);
        low = choose(splits, V{} + here, low);
      }
      const auto open = top > 0.0;
      const auto one = open & (low == top), two = open & (low + 1.0 == top);
      deflated = one | two;
      top -= choose(one, V{} + 1.0, choose(two, V{} + 2.0, V{}));
      steps = choose(deflated, V{}, steps);
    }
    const auto open = top > 0.0;
    if (!any(open)) return !failed;
    steps = choose(open, steps + 1.0, steps);
    const auto lost = open & (steps > kMostFrancisSteps + 0.0);
    failed = failed | lost;
    top = choose(lost, V{}, top);
    V a{}, b{}, c{}, d{}, above{};
    const int last = static_cast<int>(largest_lane(top));
    for (int i = 2; i <= last; ++i) {
      const V *row = h + i * n, *before = row - n;
      const auto own = top == static_cast<double>(i);
      a = choose(own, before[i - 1], a);
      b = choose(own, before[i], b);
      c = choose(own, row[i - 1], c);
      d = choose(own, row[i], d);
      above = choose(own, before[i - 2], above);
    }
    // The eigenvalues of the last two rows; now and then others, where that leads nowhere.
    const V other = magnitude(c) + magnitude(above);
    const auto odd = (steps == 10.0) | (steps == 20.0) | (steps == 30.0);
    const V trace = choose(odd, 1.5 * other, a + d);
    const V determinant = choose(odd, other * other, a * d - b * c);
    francis_step(h, z, n, choose(top > 0.0, low, V{}), top, trace, determinant);
  }
}

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
