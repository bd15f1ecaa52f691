// SPDX-License-Identifier: BSD-3-Clause
#include "lane_kernels.h"

#include <algorithm>

#include "math/cholesky.h"
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
      lanes_(lanes) {
  std::fill_n(data_, entries * lanes, 0.0);
}

LaneArray::~LaneArray() { ::operator delete(data_, kAlignment); }

KF_MULTIARCH unsigned lane_symmetric_eigen(double* a, int n, double* values, double* vectors,
                                           double* work) {
  return bits(symmetric_eigen(packs(a), n, packs(values), packs(vectors), packs(work)));
}

KF_MULTIARCH void lane_invert_definite(double* g, int n, double* out, double* work,
                                       double* condition) {
  *packs(condition) = invert_definite(packs(g), n, packs(out), packs(work));
}

KF_MULTIARCH void lane_multiply(const double* a, const double* b, int rows, int inner, int columns,
                                double* out) {
  multiply(packs(a), packs(b), rows, inner, columns, packs(out));
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
