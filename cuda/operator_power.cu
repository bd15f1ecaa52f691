// SPDX-License-Identifier: BSD-3-Clause
#include "operator_power.h"

#include "math/block_power.h"
#include "warp_team.cuh"
#include "windows.cuh"

// The combine pass is bound by reading the snapshots: for 10^8 weights x 32 float32 snapshots and
// four horizons on an H200 14.4 GB in 3.4 ms, beside 0.9 ms of multiply-adds and 0.8 ms of
// widening. A lane keeps the sums of four neighbouring columns and up to eight horizons in
// registers, and coefficients come through the cache, one address for the whole warp.
namespace koopfast::cuda {
namespace {

constexpr int kMostHorizons = 8;

// out[h] of four columns: base w_last + sum, in double, rounded once.
template <typename T>
__device__ __forceinline__ void finish(const double (&sum)[4], double base, const T (&last)[4],
                                       const Columns& at, bool aligned, T* row) {
  Four<T> four;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const double kept = base == 0 ? 0.0 : base * widen(last[k]);
    narrow(kept + sum[k], four.value[k]);
    // What does not move keeps its bits, the sign of zero included.
    if (base == 1 && sum[k] == 0) four.value[k] = last[k];
  }
  store(four, at, aligned, row);
}

template <typename T, int Horizons>
__global__ void __launch_bounds__(kWarp* kWarps)
    combine_kernel(SnapshotView s, BlockTable table, const int64_t* blocks, ChunkPlan plan,
                   bool dual, const double* base, const int64_t* value_offsets,
                   const double* values, int64_t n_horizons, bool aligned, T* out,
                   int64_t out_stride) {
  const int64_t chunk = warp_index();
  if (chunk >= plan.count) return;
  const int64_t position = plan.owners[chunk], block = blocks[position];
  const int64_t size = table.block_size(block), rows = dual ? s.m : size;
  const double* own = values + value_offsets[position];
  const T* data = static_cast<const T*>(s.data);
  Windows<kWarp> windows(table, block, plan.begin(chunk), plan.end(chunk, size), lane_index());
  Columns at;
  while (windows.next(at)) {
    T last[4];
    load(data + (s.m - 1) * s.row_stride, at, aligned, last);
    for (int64_t first = 0; first < n_horizons; first += Horizons) {
      const int64_t most = n_horizons - first - 1;  // what is beyond it is computed, not stored
      double sum[Horizons][4] = {};
      if (dual) {
#pragma unroll 4
        for (int64_t t = 0; t < s.m - 1; ++t) {
          T value[4];
          load(data + t * s.row_stride, at, aligned, value);
#pragma unroll
          for (int h = 0; h < Horizons; ++h) {
            const double weight = own[(first + (h < most ? h : most)) * rows + t];
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[h][k] += weight * (widen(value[k]) - widen(last[k]));
          }
        }
      } else {
#pragma unroll
        for (int h = 0; h < Horizons; ++h)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (h <= most && at.flat[k] >= 0) sum[h][k] = own[(first + h) * rows + at.column + k];
      }
#pragma unroll
      for (int h = 0; h < Horizons; ++h)
        if (h <= most)
          finish(sum[h], base[position * n_horizons + first + h], last, at, aligned,
                 out + (first + h) * out_stride);
    }
  }
}

// A warp a block, one after another.
__global__ void __launch_bounds__(kWarp* kWarps, 6)
    operator_power_kernel(FittedBlocks fits, const int64_t* row_counts, int64_t count, bool dual,
                          const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                          double* values, double* base, int64_t most_rank, double* workspace,
                          int64_t teams) {
  const int64_t team = warp_index();
  if (team >= teams) return;
  double* work = workspace + team * block_power_workspace(most_rank, n_horizons);
  for (int64_t i = team; i < count; i += teams)
    power_block(WarpTeam{}, fits, i, row_counts[i], dual, horizons, n_horizons,
                values + value_offsets[i], base + i * n_horizons, work);
}

}  // namespace

int64_t operator_power_workspace(int64_t rank, int64_t n_horizons) {
  return block_power_workspace(rank, n_horizons);
}

void operator_power(const FittedBlocks& fits, const int64_t* row_counts, int64_t count, bool dual,
                    const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                    double* values, double* base, int64_t most_rank, double* workspace,
                    int64_t teams, void* stream) {
  launch({grid_of_warps(teams), kWarp * kWarps, stream}, operator_power_kernel, fits, row_counts,
         count, dual, horizons, n_horizons, value_offsets, values, base, most_rank, workspace,
         teams);
}

void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
             const ChunkPlan& plan, bool dual, const double* base, const int64_t* value_offsets,
             const double* values, int64_t n_horizons, void* out, int64_t out_stride,
             void* stream) {
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    const bool aligned = aligned_rows<T>(s.data, s.row_stride) && aligned_rows<T>(out, out_stride);
    const auto run = [&](auto* kernel) {
      launch({grid_of_warps(plan.count), kWarp * kWarps, stream}, kernel, s, table, blocks, plan,
             dual, base, value_offsets, values, n_horizons, aligned, static_cast<T*>(out),
             out_stride);
    };
    if (n_horizons <= kMostHorizons / 2)
      run(combine_kernel<T, kMostHorizons / 2>);
    else
      run(combine_kernel<T, kMostHorizons>);
  });
}

}  // namespace koopfast::cuda
