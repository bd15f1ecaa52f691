// SPDX-License-Identifier: BSD-3-Clause
#include "moments.h"

#include <type_traits>

#include "launch.cuh"
#include "moment_stream.h"

// Moments of small blocks: a lane owns entries of a block's matrices and goes through the snapshots
// by itself. A block has few weights, so that its columns stay in the cache while all of its
// entries are summed; each sum has one owner and one order.
namespace koopfast::cuda {
namespace {

// Warps that share the entries of one block.
constexpr int64_t kSlices = 8;

// o_t of one weight: `row` is that of snapshot t, `reference` what is taken from states.
template <typename T>
__device__ __forceinline__ double observable(const T* row, int64_t row_stride, bool increments,
                                             double reference) {
  return increments ? widen(row[row_stride]) - widen(row[0]) : widen(row[0]) - reference;
}

template <typename T>
__global__ void __launch_bounds__(kWarp* kWarps)
    snapshot_moments_kernel(SnapshotView s, BlockTable table, const int64_t* blocks, int64_t count,
                            bool increments, int64_t delays, const int64_t* moment_offsets,
                            double* moments, const int64_t* latest_offsets, double* latest) {
  const int64_t task = warp_index();
  if (task >= count * kSlices) return;
  const int64_t position = task / kSlices, block = blocks[position];
  const int64_t n = table.block_size(block), full = (delays + 1) * n;
  const int64_t observables = s.m - (increments ? 1 : 0), pairs = observables - delays;
  const T* data = static_cast<const T*>(s.data);
  double* own = moments + moment_offsets[position];
  const int64_t first = task % kSlices * kWarp + lane_index();
  for (int64_t e = first; e < full * full; e += kSlices * kWarp) {
    const int64_t i = e / full, j = e % full;
    if (j > i) continue;
    const T* left = data + (delays - i / n) * s.row_stride + table.flat_index(block, i % n);
    const T* right = data + (delays - j / n) * s.row_stride + table.flat_index(block, j % n);
    double sum = 0;
    for (int64_t t = 0; t < pairs; ++t)
      sum += observable(left + t * s.row_stride, s.row_stride, increments, 0) *
             observable(right + t * s.row_stride, s.row_stride, increments, 0);
    own[i * full + j] = own[j * full + i] = sum;
  }
  for (int64_t e = first; e < delays * n; e += kSlices * kWarp) {
    const T* newest = data + (observables - 1 - e / n) * s.row_stride;
    latest[latest_offsets[position] + e] =
        observable(newest + table.flat_index(block, e % n), s.row_stride, increments, 0);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarp* kWarps)
    fold_moments_kernel(MomentStream m, BlockTable table, int64_t n_blocks, int64_t until) {
  const int64_t task = warp_index();
  if (task >= n_blocks * kSlices) return;
  const int64_t block = task / kSlices, n = table.block_size(block), area = n * n;
  const int64_t q = m.delays, recent = m.folded > 0 ? m.folded - q : 0;
  const T* data = static_cast<const T*>(m.recent.data);
  const T* head = static_cast<const T*>(m.head.data);
  const int64_t stride = m.recent.row_stride;
  const int64_t first = task % kSlices * kWarp + lane_index();
  for (int64_t e = first; e < (q + 1) * area; e += kSlices * kWarp) {
    const int64_t k = e / area, i = e % area / n, j = e % n;
    const int64_t newer = table.flat_index(block, i), older = table.flat_index(block, j);
    const double newer_reference = m.increments ? 0 : widen(head[newer]);
    const double older_reference = m.increments ? 0 : widen(head[older]);
    const int64_t start = m.folded > 0 ? recent : q - k;
    double sum = 0;
    for (int64_t s = start; s < until - q; ++s) {
      const T* row = data + (s - recent) * stride;
      sum += observable(row + k * stride + newer, stride, m.increments, newer_reference) *
             observable(row + older, stride, m.increments, older_reference);
    }
    m.lags[m.lag_offsets[block] + e] += sum;
  }
  if (m.increments) return;
  for (int64_t c = first; c < n; c += kSlices * kWarp) {
    const int64_t flat = table.flat_index(block, c);
    const double reference = widen(head[flat]);
    double sum = 0;
    for (int64_t s = m.folded > 0 ? recent : q; s < until - q; ++s)
      sum += widen(data[(s - recent) * stride + flat]) - reference;
    m.sums[m.sum_offsets[block] + c] += sum;
  }
}

}  // namespace

void snapshot_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                      int64_t count, bool increments, int64_t delays, const int64_t* moment_offsets,
                      double* moments, const int64_t* latest_offsets, double* latest,
                      void* stream) {
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    launch({grid_of_warps(count * kSlices), kWarp * kWarps, stream}, snapshot_moments_kernel<T>, s,
           table, blocks, count, increments, delays, moment_offsets, moments, latest_offsets,
           latest);
  });
}

void fold_moments(const MomentStream& m, const BlockTable& table, int64_t n_blocks, int64_t until,
                  void* stream) {
  dispatch(m.recent.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    launch({grid_of_warps(n_blocks * kSlices), kWarp * kWarps, stream}, fold_moments_kernel<T>, m,
           table, n_blocks, until);
  });
}

}  // namespace koopfast::cuda
