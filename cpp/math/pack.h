// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

// One number of each of eight blocks, side by side: the maths of small matrices is written once
// for a value V, which is a double (one block), a Pack (eight blocks in lock-step) or, where one
// operation waits for the last, a PackPair (math/pack_pair.h). Comparisons
// give a mask, choose(mask, a, b) is `mask ? a : b` lane by lane.
namespace koopfast {

constexpr int kLanes = 8;

KF_INLINE double square_root(double x) { return sqrt(x); }
KF_INLINE double magnitude(double x) { return fabs(x); }
KF_INLINE bool any(bool mask) { return mask; }
KF_INLINE double largest_lane(double x) { return x; }
KF_INLINE double choose(bool mask, double a, double b) { return mask ? a : b; }

#ifndef __CUDACC__
// Passing vectors by value would be an interface that depends on the instruction set; all that do
// are inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

typedef double Pack __attribute__((vector_size(8 * kLanes)));
typedef int64_t PackMask __attribute__((vector_size(8 * kLanes)));

KF_INLINE Pack square_root(const Pack& x) {
  alignas(64) double lanes[kLanes];
  __builtin_memcpy(lanes, &x, sizeof x);
  for (int l = 0; l < kLanes; ++l) lanes[l] = __builtin_sqrt(lanes[l]);
  Pack root;
  __builtin_memcpy(&root, lanes, sizeof root);
  return root;
}

KF_INLINE Pack magnitude(const Pack& x) { return x < 0.0 ? -x : x; }

KF_INLINE Pack choose(const PackMask& mask, const Pack& a, const Pack& b) { return mask ? a : b; }

KF_INLINE bool any(const PackMask& mask) {
  int64_t together = 0;
  for (int l = 0; l < kLanes; ++l) together |= mask[l];
  return together != 0;
}

KF_INLINE double largest_lane(const Pack& x) {
  alignas(64) double lanes[kLanes];
  __builtin_memcpy(lanes, &x, sizeof x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l)
      lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
  return lanes[0];
}
#endif

// The mask of a comparison of V.
template <typename V>
using Mask = decltype(V{} < V{});

}  // namespace koopfast
