// SPDX-License-Identifier: BSD-3-Clause
#include "operator_power.h"

#include <algorithm>

#include "check.cuh"

namespace koopfast::cuda {
namespace {

// Bound by reading the snapshots: one thread a column keeps the sums of several horizons in
// registers, so that more horizons cost no more reads until they fill the registers.
constexpr int kThreads = 256;
constexpr int kHorizonsAtOnce = 8;
constexpr int64_t kMostPieces = 4096;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(SnapshotView s, BlockTable table, const int64_t* blocks, bool dual,
                   const double* base, const int64_t* value_offsets, const double* values,
                   int64_t n_horizons, T* out, int64_t out_stride) {
  const int64_t block = blocks[blockIdx.x];
  const int64_t size = table.block_size(block);
  const int64_t rows = dual ? s.m : size;
  const double* own = values + value_offsets[blockIdx.x];
  const T* data = static_cast<const T*>(s.data);
  for (int64_t column = blockIdx.y * int64_t{kThreads} + threadIdx.x; column < size;
       column += gridDim.y * int64_t{kThreads}) {
    const int64_t segment = table.find_segment(block, column);
    const int64_t flat = table.starts[segment] + column - table.columns[segment];
    const double last = widen(data[(s.m - 1) * s.row_stride + flat]);
    for (int64_t h0 = 0; h0 < n_horizons; h0 += kHorizonsAtOnce) {
      double sum[kHorizonsAtOnce];
#pragma unroll
      for (int h = 0; h < kHorizonsAtOnce; ++h)
        sum[h] = !dual && h0 + h < n_horizons ? own[(h0 + h) * rows + column] : 0.0;
      for (int64_t t = 0; dual && t < s.m; ++t) {
        const double change = widen(data[t * s.row_stride + flat]) - last;
#pragma unroll
        for (int h = 0; h < kHorizonsAtOnce; ++h)
          if (h0 + h < n_horizons) sum[h] += own[(h0 + h) * rows + t] * change;
      }
#pragma unroll
      for (int h = 0; h < kHorizonsAtOnce; ++h) {
        if (h0 + h >= n_horizons) continue;
        const double own_base = base[blockIdx.x * n_horizons + h0 + h];
        const double kept = own_base == 0 ? 0.0 : own_base * last;
        T& result = out[(h0 + h) * out_stride + flat];
        // What does not move keeps its bits, the sign of zero included.
        if (own_base == 1 && sum[h] == 0)
          result = data[(s.m - 1) * s.row_stride + flat];
        else
          narrow(kept + sum[h], result);
      }
    }
  }
}

}  // namespace

void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
             bool dual, const double* base, const int64_t* value_offsets, const double* values,
             int64_t n_horizons, void* out, int64_t out_stride, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int64_t pieces = std::clamp<int64_t>(s.n / (count * kThreads), 1, kMostPieces);
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(pieces));
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    combine_kernel<T><<<grid, kThreads, 0, on>>>(s, table, blocks, dual, base, value_offsets,
                                                 values, n_horizons, static_cast<T*>(out),
                                                 out_stride);
  });
  KF_CUDA_CHECK(cudaGetLastError());
}

}  // namespace koopfast::cuda
