// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.cuh"

namespace koopfast::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
// Warps of a CTA in kernels whose warps know nothing of each other.
constexpr int kWarps = 4;

// Grid, block and stream of a launch, and the line that asks for it.
struct Launch {
  dim3 grid, block;
  cudaStream_t stream;
  const char* file;
  int line;

  Launch(dim3 grid_, dim3 block_, void* stream_, const char* file_ = __builtin_FILE(),
         int line_ = __builtin_LINE())
      : grid(grid_),
        block(block_),
        stream(static_cast<cudaStream_t>(stream_)),
        file(file_),
        line(line_) {}
};

// The CTAs of `warps` independent warps; blockIdx.x may reach 2^31 - 1.
inline dim3 grid_of_warps(int64_t warps) {
  return dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps));
}

template <typename... Parameters, typename... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), Arguments... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0) return;
#ifdef __CUDACC__
  kernel<<<how.grid, how.block, 0, how.stream>>>(arguments...);
#else
  // On the host, in tests: tests/cpp/cuda_on_host.
  emulated::run(how.grid, how.block, [&] { kernel(arguments...); });
#endif
  check(cudaGetLastError(), how.file, how.line);
}

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

// Of kernels whose CTAs are kWarps warps.
__device__ inline int64_t warp_index() {
  return blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarp;
}

}  // namespace koopfast::cuda
