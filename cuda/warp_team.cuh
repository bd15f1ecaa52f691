// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "launch.cuh"

namespace koopfast::cuda {

// A warp as a team of math/team.h.
struct WarpTeam {
  __device__ int index() const { return lane_index(); }
  __device__ int size() const { return kWarp; }
  __device__ void sync() const { __syncwarp(); }
  // The same bits in every lane: both of a pair add the same two numbers.
  __device__ double sum(double own) const {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) own += __shfl_xor_sync(kAllLanes, own, mask);
    return own;
  }
};

}  // namespace koopfast::cuda
