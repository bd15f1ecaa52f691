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
KF_INLINE double reciprocal_root(double x) { return 1 / sqrt(x); }
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

// 1 / sqrt(x) of normal numbers, to two units in the last place. Products alone: the processor's
// own square root and division take three times as long, and one has to wait for the other.
KF_INLINE Pack reciprocal_root(const Pack& x) {
  PackMask bits;
  __builtin_memcpy(&bits, &x, sizeof x);
  // Halving the exponent gives the root to a thirtieth.
  bits = 0x5FE6EB50C7B537A9 - (bits >> 1);
  Pack y;
  __builtin_memcpy(&y, &bits, sizeof y);
  // With e = 1 - x y^2 it is y (1 - e)^(-1/2): the series, to e^4 and to e^2.
  const Pack far = 1.0 - x * y * y;
  y += y * (far * (0.5 + far * (0.375 + far * (0.3125 + far * 0.2734375))));
  const Pack near = 1.0 - x * y * y;
  return y + y * (near * (0.5 + near * 0.375));
}

KF_INLINE Pack magnitude(const Pack& x) { return x < 0.0 ? -x : x; }

// Eight packs as the rows of a square: its columns.
KF_INLINE void transpose(Pack* rows) {
  Pack pairs[kLanes], fours[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    pairs[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 2; ++j) {
      const Pack &a = pairs[i + j], &b = pairs[i + j + 2];
      fours[i + j] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + j + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int j = 0; j < 4; ++j) {
    rows[j] = __builtin_shufflevector(fours[j], fours[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[j + 4] = __builtin_shufflevector(fours[j], fours[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

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
