// SPDX-License-Identifier: BSD-3-Clause
#include "lane_kernels.h"

#include <algorithm>

#include "math/cholesky.h"
#include "math/pack_pair.h"
#include "math/power_by_squaring.h"
#include "math/stability.h"
#include "math/symmetric_eigen.h"

namespace koopfast {
namespace {

static_assert(kLaneCount == kLanes, "a lane for each number of a pack");

// (Not alignof, which is that of the instruction set at hand.)
constexpr std::align_val_t kAlignment{sizeof(Pack)};

KF_INLINE Pack* packs(double* lanes) { return reinterpret_cast<Pack*>(lanes); }
KF_INLINE const Pack* packs(const double* lanes) { return reinterpret_cast<const Pack*>(lanes); }

KF_INLINE unsigned bits(const PackMask& mask) {
  unsigned out = 0;
  for (int l = 0; l < kLanes; ++l) out |= mask[l] != 0 ? 1u << l : 0u;
  return out;
}

}  // namespace

LaneArray::LaneArray(int64_t entries, int lanes)
    : data_(static_cast<double*>(::operator new(entries * lanes * sizeof(double), kAlignment))),
      entries_(entries),
      lanes_(lanes) {}

void LaneArray::clear() { std::fill_n(data_, entries_ * lanes_, 0.0); }

LaneArray::~LaneArray() { ::operator delete(data_, kAlignment); }

KF_MULTIARCH unsigned lane_gather(const double* const* matrices, int rows, int columns, int64_t ld,
                                  double* out) {
  Pack probe{};  // NaN as soon as something is not finite
  for (int i = 0; i < rows; ++i, out += static_cast<int64_t>(columns) * kLanes) {
    const int64_t row = i * ld;
    // The last square of eight columns overlaps the one before.
    for (int j = 0; columns >= kLanes; j = std::min(j + kLanes, columns - kLanes)) {
      Pack square[kLanes];
      for (int l = 0; l < kLanes; ++l)
        __builtin_memcpy(&square[l], matrices[l] + row + j, sizeof(Pack));
      transpose(square);
      for (int c = 0; c < kLanes; ++c) {
        probe += 0.0 * square[c];
        packs(out)[j + c] = square[c];
      }
      if (j + kLanes == columns) break;
    }
    for (int j = 0; columns < kLanes && j < columns; ++j) {
      for (int l = 0; l < kLanes; ++l) out[j * kLanes + l] = matrices[l][row + j];
      probe += 0.0 * packs(out)[j];
    }
  }
  return bits(probe == 0.0);
}

KF_MULTIARCH void lane_scatter(const double* a, int64_t entries, double* const* outs) {
  int64_t i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    Pack square[kLanes];
    for (int e = 0; e < kLanes; ++e) square[e] = packs(a)[i + e];
    transpose(square);
    for (int l = 0; l < kLanes; ++l)
      if (outs[l] != nullptr) __builtin_memcpy(outs[l] + i, &square[l], sizeof(Pack));
  }
  for (; i < entries; ++i)
    for (int l = 0; l < kLanes; ++l)
      if (outs[l] != nullptr) outs[l][i] = a[i * kLanes + l];
}

KF_MULTIARCH unsigned lane_finite(const double* a, int64_t entries) {
  Pack probe{};
  for (int64_t i = 0; i < entries; ++i) probe += 0.0 * packs(a)[i];
  return bits(probe == 0.0);
}

KF_MULTIARCH void lane_scale(const double* factors, int64_t entries, double* a) {
  Pack own;
  __builtin_memcpy(&own, factors, sizeof own);
  for (int64_t i = 0; i < entries; ++i) {
    const Pack scaled = own * packs(a)[i];
    packs(a)[i] = own > 0.0 ? scaled : Pack{};
  }
}

int64_t lane_eigen_state(int n) { return 2 * (n * n + 4 * n); }

KF_MULTIARCH unsigned lane_eigenvalues(const double* low, const double* high, int n,
                                       double* low_values, double* high_values, double* state) {
  PackPair* a = reinterpret_cast<PackPair*>(state);
  PackPair *diagonal = a + n * n, *beside = diagonal + n, *values = beside + n;
  PackPair* squares = values + n;
  for (int i = 0; i < n * n; ++i) a[i] = {packs(low)[i], packs(high)[i]};
  tridiagonalise(a, n, diagonal, beside, squares);
  for (int i = 0; i < n; ++i) {
    values[i] = diagonal[i];
    squares[i] = beside[i] * beside[i];
  }
  const MaskPair converged = tridiagonal_eigenvalues(values, squares, n);
  for (int i = 0; i < n; ++i) {
    packs(low_values)[i] = values[i].low;
    packs(high_values)[i] = values[i].high;
  }
  return bits(converged.low) | bits(converged.high) << kLaneCount;
}

int64_t lane_leading_workspace(int n, int count) {
  return 2 * (leading_workspace(n, count) + n * count);
}

KF_MULTIARCH unsigned lane_leading_eigenvectors(double* state, int n, int count,
                                                const double* low_wanted, const double* high_wanted,
                                                double* low_vectors, double* high_vectors,
                                                double* work) {
  PackPair* a = reinterpret_cast<PackPair*>(state);
  PackPair *diagonal = a + n * n, *beside = diagonal + n, *values = beside + n;
  PackPair *vectors = reinterpret_cast<PackPair*>(work), *rest = vectors + n * count;
  const PackPair wanted{*packs(low_wanted), *packs(high_wanted)};
  const MaskPair converged =
      leading_eigenvectors(a, diagonal, beside, values, n, count, wanted, vectors, rest);
  for (int j = 0; j < count; ++j) {
    const MaskPair own = wanted > static_cast<double>(j);
    for (int i = 0; i < n; ++i) {
      const PackPair& entry = vectors[i * count + j];
      packs(low_vectors)[i * count + j] = choose(own.low, entry.low, Pack{});
      packs(high_vectors)[i * count + j] = choose(own.high, entry.high, Pack{});
    }
  }
  return bits(converged.low) | bits(converged.high) << kLaneCount;
}

KF_MULTIARCH void lane_invert_definite(double* g, int n, double* out, double* work,
                                       double* condition) {
  *packs(condition) = invert_definite(packs(g), n, packs(out), packs(work));
}

KF_MULTIARCH void lane_multiply(const double* a, const double* b, int rows, int inner, int columns,
                                double* out) {
  multiply(packs(a), packs(b), rows, inner, columns, packs(out));
}

KF_MULTIARCH void lane_multiply_transposed(const double* a, const double* b, int rows, int inner,
                                           int columns, double* out) {
  multiply_transposed(packs(a), packs(b), rows, inner, columns, packs(out));
}

KF_MULTIARCH void lane_divide_nearly_diagonal(const double* b, const double* d,
                                              const double* inverse, int rows, int k, double* out,
                                              double* work) {
  divide_nearly_diagonal(packs(b), packs(d), packs(inverse), rows, k, packs(out), packs(work));
}

KF_MULTIARCH unsigned lane_certainly_stable(const double* a, int k, double* work) {
  return bits(certainly_stable(packs(a), k, packs(work)));
}

KF_MULTIARCH void lane_power(const double* a, const double* v, int k, const uint64_t* exponents,
                             int64_t count, bool sums, double* out, double* work) {
  power_by_squaring(packs(a), packs(v), k, exponents, count, sums, packs(out), packs(work));
}

}  // namespace koopfast
