// SPDX-License-Identifier: BSD-3-Clause
#include "snapshot_svd.h"

#include <algorithm>

#include "check.cuh"

namespace koopfast::cuda {
namespace {

// A CTA owns one 32 x 32 piece of a block's Gram matrix and a share of its columns, which it reads
// 32 at a time through shared memory: each widened difference is formed once a tile and used 32
// times. 16 x 16 threads hold 2 x 2 sums each, in double.
constexpr int kSide = 32;
constexpr int kThreads = 256;
// Enough CTAs to fill the largest devices several times over.
constexpr int64_t kMostPieces = 2048;
constexpr int64_t kColumnsPerPiece = 4096;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    snapshot_gram_kernel(SnapshotView s, BlockTable table, const int64_t* blocks,
                         SnapshotRows wanted, double* grams) {
  // One more column than needed: neighbouring rows fall into different banks.
  __shared__ double a[kSide][kSide + 1], b[kSide][kSide + 1];
  __shared__ int64_t flat[kSide];

  const int64_t block = blocks[blockIdx.x];
  const int64_t size = table.block_size(block);
  // blockIdx.z counts the pieces on and below the diagonal, row by row.
  int64_t tile_row = 0, tile_column = blockIdx.z;
  while (tile_column > tile_row) tile_column -= ++tile_row;
  const int64_t row0 = tile_row * kSide, row1 = tile_column * kSide;

  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const T* data = static_cast<const T*>(s.data);
  double sum[2][2] = {{0, 0}, {0, 0}};
  for (int64_t first = blockIdx.y * int64_t{kSide}; first < size;
       first += gridDim.y * int64_t{kSide}) {
    if (threadIdx.x < kSide) {
      const int64_t column = first + threadIdx.x;
      const int64_t segment = column < size ? table.find_segment(block, column) : 0;
      flat[threadIdx.x] =
          column < size ? table.starts[segment] + column - table.columns[segment] : -1;
    }
    __syncthreads();
    const int c = threadIdx.x % kSide;
    const bool inside = flat[c] >= 0;
    const bool states = wanted == SnapshotRows::states;
    const int64_t rows = wanted == SnapshotRows::increments ? s.m - 1 : s.m;
    const auto entry = [&](int64_t r) {
      if (!inside || r >= rows) return 0.0;
      const T* at = data + r * s.row_stride + flat[c];
      return states || r == s.m - 1 ? widen(at[0]) : widen(at[s.row_stride]) - widen(at[0]);
    };
    for (int r = threadIdx.x / kSide; r < kSide; r += kThreads / kSide) {
      a[r][c] = entry(row0 + r);
      b[r][c] = entry(row1 + r);
    }
    __syncthreads();
    for (int k = 0; k < kSide; ++k)
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) sum[i][j] += a[y + 16 * i][k] * b[x + 16 * j][k];
    __syncthreads();
  }

  double* gram = grams + blockIdx.x * s.m * s.m;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      const int64_t r = row0 + y + 16 * i, q = row1 + x + 16 * j;
      if (r >= s.m || q >= s.m) continue;
      // The pieces of a block add up in any order: double keeps the difference below its noise.
      atomicAdd(&gram[r * s.m + q], sum[i][j]);
      if (row0 != row1) atomicAdd(&gram[q * s.m + r], sum[i][j]);
    }
}

}  // namespace

void snapshot_gram(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   int64_t count, SnapshotRows wanted, double* grams, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  KF_CUDA_CHECK(cudaMemsetAsync(grams, 0, count * s.m * s.m * sizeof(double), on));
  const int64_t tiles = (s.m + kSide - 1) / kSide;
  // Block sizes are known to the device only; the mean size says how many pieces are worth while.
  const int64_t pieces = std::clamp<int64_t>(s.n / (count * kColumnsPerPiece), 1, kMostPieces);
  // blockIdx.x may reach 2^31 - 1, y and z 65535: tiles stay below that up to m of about 11,000.
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(pieces),
                  static_cast<unsigned>(tiles * (tiles + 1) / 2));
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    snapshot_gram_kernel<T><<<grid, kThreads, 0, on>>>(s, table, blocks, wanted, grams);
  });
  KF_CUDA_CHECK(cudaGetLastError());
}

}  // namespace koopfast::cuda
