// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "launch.cuh"

namespace koopfast::cuda {

// C += A B of (16, 8) and (8, 8) in double by one warp. With g = lane / 4 and t = lane % 4 a lane
// holds, as the tensor cores want it (PTX ISA, fragments of mma.m16n8k8 for .f64),
//   a  A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]
//   b  B[t][g], B[t + 4][g]
//   c  C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]
// The 8 inner indices may be renamed at will, as long as A and B are alike: so the fragment of rows
// E of a Gram matrix E E^T is the same number whether it stands left or right.
//
// Compute capability 9.0 and 10.0 have this shape in hardware, 8.x that of (8, 4) by (4, 8). The
// others get the numbers of their neighbours by shuffles: where double precision runs at a 32nd
// or a 64th of the rate, exchanging six registers for two multiply-adds costs nothing.
__device__ __forceinline__ void multiply_add_8x8x4(double& c0, double& c1, double a, double b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1200
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c0), "+d"(c1)
               : "d"(a), "d"(b));
#else
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int k = 0; k < 4; ++k) {
    const double own = __shfl_sync(kAllLanes, a, 4 * g + k);
    const double left = __shfl_sync(kAllLanes, b, 4 * (2 * t) + k);
    const double right = __shfl_sync(kAllLanes, b, 4 * (2 * t + 1) + k);
    c0 += own * left;
    c1 += own * right;
  }
#endif
}

__device__ __forceinline__ void multiply_add(double (&c)[4], const double (&a)[4],
                                             const double (&b)[2]) {
#if defined(KOOPFAST_EMULATED_TENSOR_CORES)
  emulated_mma_16x8x8(c, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
  multiply_add_8x8x4(c[0], c[1], a[0], b[0]);
  multiply_add_8x8x4(c[2], c[3], a[1], b[0]);
  multiply_add_8x8x4(c[0], c[1], a[2], b[1]);
  multiply_add_8x8x4(c[2], c[3], a[3], b[1]);
#endif
}

}  // namespace koopfast::cuda
