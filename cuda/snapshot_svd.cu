// SPDX-License-Identifier: BSD-3-Clause
#include "snapshot_svd.h"

#include "tensor_product.cuh"
#include "windows.cuh"

// Per-block Gram matrices E E^T. What decides the shape, for 10^8 weights x 32 float32 snapshots on
// an H200: 12.8 GB are read in 3.0 ms at 4.3 TB/s; half of the 32 x 32 products, 5.3e10
// multiply-adds, take 3.1 ms of the double-precision pipe at its best (34 TFLOP/s), and loading its
// operands would add to that; the tensor cores need 2.3 ms (67 TFLOP/s, three quarters of all
// products: tiles of 16 x 8 on and below the diagonal) and overlap with the reading. So: tensor
// cores, operands in registers from global memory to the product, no shared memory, no barrier.
//
// A warp owns a chunk of a block's columns and a piece of its Gram matrix, of up to 32 x 32. Lane
// (g, t) = (lane / 4, lane % 4) reads rows g, g + 8, g + 16, g + 24 and four neighbouring columns:
// those are the fragments that the product wants, left and right alike (tensor_product.cuh).
// Increments are formed in double with the row of the lane above, by a shuffle. The sum over a
// block's chunks is a second kernel, in an order that depends on the block's size alone.
namespace koopfast::cuda {
namespace {

constexpr int kPiece = 32;
constexpr int kEntries = 32, kAdders = 32;  // of the second stage's CTA

// Kinds of pieces: the only one of m <= 16; one on the diagonal; one below it.
enum class Piece { small, diagonal, below };

// Rows row0 .. row0 + 8 Tiles - 1 (and the one after) of the four columns of a lane.
template <typename T, int Tiles>
struct Rows {
  T own[Tiles][4];
  T after[4];  // of row row0 + 8 Tiles, held by the lanes with g = 0

  __device__ __forceinline__ void read(const SnapshotView& s, int64_t row0, const Columns& at,
                                       bool aligned) {
    const int g = lane_index() / 4;
    const T* data = static_cast<const T*>(s.data);
#pragma unroll
    for (int i = 0; i < Tiles; ++i) {
      const int64_t r = row0 + 8 * i + g;
#pragma unroll
      for (int k = 0; k < 4; ++k) own[i][k] = T{};
      if (r < s.m) load(data + r * s.row_stride, at, aligned, own[i]);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) after[k] = T{};
    const int64_t r = row0 + 8 * Tiles;
    if (r < s.m && g == 0) load(data + r * s.row_stride, at, aligned, after);
  }

  // E[row0 + 8 i + g] of column k.
  __device__ __forceinline__ void widened(const SnapshotView& s, int64_t row0, SnapshotRows wanted,
                                          int k, double (&e)[Tiles]) const {
    const int lane = lane_index(), g = lane / 4;
    double wide[Tiles + 1];
#pragma unroll
    for (int i = 0; i < Tiles; ++i) wide[i] = widen(own[i][k]);
    wide[Tiles] = widen(after[k]);
#pragma unroll
    for (int i = 0; i < Tiles; ++i) {
      e[i] = wide[i];
      if (wanted == SnapshotRows::states) continue;
      // The lanes of g = 7 get row 0 of the next tile.
      const double next =
          __shfl_sync(kAllLanes, g == 0 ? wide[i + 1] : wide[i], (lane + 4) % kWarp);
      const int64_t r = row0 + 8 * i + g;
      if (r < s.m - 1)
        e[i] = next - wide[i];
      else if (wanted == SnapshotRows::increments)
        e[i] = 0;
    }
  }
};

// The products of one piece: pairs of 8-row tiles by 8-row tiles; on the diagonal only those that
// reach it.
template <Piece kind>
struct Products {
  static constexpr int kTiles = kind == Piece::small ? 2 : kPiece / 8;
  static constexpr int kPairs = kTiles / 2;
  double sum[kPairs][kTiles][4] = {};

  __host__ __device__ static constexpr bool wanted(int pair, int tile) {
    return kind == Piece::below || tile <= 2 * pair + 1;
  }

  // Adds the columns k and k + 1 of every lane: eight of the inner index.
  __device__ __forceinline__ void add(const double (&left)[2][kTiles],
                                      const double (&right)[2][kTiles]) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (!wanted(p, j)) continue;
        const double a[4] = {left[0][2 * p], left[0][2 * p + 1], left[1][2 * p],
                             left[1][2 * p + 1]};
        const double b[2] = {right[0][j], right[1][j]};
        multiply_add(sum[p][j], a, b);
      }
  }

  __device__ __forceinline__ void store(int64_t row0, int64_t column0, int64_t m,
                                        double* gram) const {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (!wanted(p, j)) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t r = row0 + 16 * p + g + 8 * (i / 2), q = column0 + 8 * j + 2 * t + i % 2;
          // Of entries that are computed twice, the lower one counts.
          if (r >= m || q > r) continue;
          gram[r * m + q] = sum[p][j][i];
          gram[q * m + r] = sum[p][j][i];
        }
      }
  }
};

// CTAs that a multiprocessor is to hold: enough loads on the way, and registers for all sums.
constexpr int resident(size_t element, Piece kind) {
  if (kind == Piece::small) return element > 4 ? 4 : 5;
  return kind == Piece::below || element > 4 ? 2 : 3;
}

template <typename T, Piece kind>
__global__ void __launch_bounds__(kWarp* kWarps, resident(sizeof(T), kind))
    snapshot_gram_kernel(SnapshotView s, BlockTable table, const int64_t* blocks, ChunkPlan plan,
                         SnapshotRows wanted, bool aligned, int64_t pieces, double* grams,
                         double* partials) {
  constexpr int kTiles = Products<kind>::kTiles;
  const int64_t task = warp_index();
  if (task >= plan.count * pieces) return;
  // The pieces of a chunk are neighbours: what one has read, the others find in the cache.
  const int64_t chunk = task / pieces, position = plan.owners[chunk], block = blocks[position];
  int64_t row0 = 0, column0 = task % pieces;
  if (kind == Piece::below) {
    // Pieces below the diagonal, row by row: (1, 0), (2, 0), (2, 1), ...
    for (row0 = 1; column0 >= row0; ++row0) column0 -= row0;
  } else {
    row0 = column0;
  }
  row0 *= kPiece;
  column0 *= kPiece;

  Products<kind> products;
  const auto add = [&](const Rows<T, kTiles>& left, const Rows<T, kTiles>& right) {
    __syncwarp();  // lanes load on different ways, and multiply together
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      double a[2][kTiles], b[2][kTiles];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        left.widened(s, row0, wanted, k + i, a[i]);
        if (kind == Piece::below) right.widened(s, column0, wanted, k + i, b[i]);
      }
      if (kind == Piece::below)
        products.add(a, b);
      else
        products.add(a, a);
    }
  };
  Windows<4> windows(table, block, plan.begin(chunk), plan.end(chunk, table.block_size(block)),
                     lane_index() % 4);
  Columns at;
  if (kind == Piece::below) {
    while (windows.next(at)) {
      Rows<T, kTiles> left, right;
      left.read(s, row0, at, aligned);
      right.read(s, column0, at, aligned);
      add(left, right);
    }
  } else if (windows.scattered()) {
    while (windows.next_scattered(at)) {
      Rows<T, kTiles> rows;
      rows.read(s, row0, at, aligned);
      add(rows, rows);
    }
  } else {
    // One window is summed while the next one is on its way.
    Rows<T, kTiles> now, next;
    bool more = windows.next_of_run(at);
    if (more) now.read(s, row0, at, aligned);
    while (more) {
      more = windows.next_of_run(at);
      if (more) next.read(s, row0, at, aligned);
      add(now, now);
      now = next;
    }
  }
  const int64_t slot = plan.slots[position], area = s.m * s.m;
  double* out =
      slot < 0 ? grams + position * area : partials + (slot + chunk - plan.first[position]) * area;
  products.store(row0, column0, s.m, out);
}

// Sums the partial Gram matrices of the blocks that have several: a CTA adds kEntries entries, each
// of its kAdders rows of threads every kAdders-th chunk.
__global__ void __launch_bounds__(kEntries* kAdders)
    add_partials_kernel(ChunkPlan plan, int64_t area, const double* partials, double* grams) {
  __shared__ double sums[kAdders][kEntries];
  const int64_t ctas = (area + kEntries - 1) / kEntries;  // of one block
  const int64_t position = plan.shared[blockIdx.x / ctas];
  const int64_t chunks = plan.first[position + 1] - plan.first[position];
  const double* own = partials + plan.slots[position] * area;
  const int64_t entry = blockIdx.x % ctas * kEntries + threadIdx.x;
  double sum = 0;
  if (entry < area) {
#pragma unroll 8
    for (int64_t c = threadIdx.y; c < chunks; c += kAdders) sum += own[c * area + entry];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || entry >= area) return;
  for (int y = 1; y < kAdders; ++y) sum += sums[y][threadIdx.x];
  grams[position * area + entry] = sum;
}

}  // namespace

void snapshot_gram(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   const ChunkPlan& plan, SnapshotRows wanted, double* grams, double* partials,
                   void* stream) {
  const int64_t side = (s.m + kPiece - 1) / kPiece, area = s.m * s.m;
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    const bool aligned = aligned_rows<T>(s.data, s.row_stride);
    const auto run = [&](auto* kernel, int64_t pieces) {
      launch({grid_of_warps(plan.count * pieces), kWarp * kWarps, stream}, kernel, s, table, blocks,
             plan, wanted, aligned, pieces, grams, partials);
    };
    if (s.m <= 16) return run(snapshot_gram_kernel<T, Piece::small>, 1);
    run(snapshot_gram_kernel<T, Piece::diagonal>, side);
    if (side > 1) run(snapshot_gram_kernel<T, Piece::below>, side * (side - 1) / 2);
  });
  // blockIdx.x may reach 2^31 - 1, the others 65535: less than there may be of either.
  const dim3 grid(static_cast<unsigned>((area + kEntries - 1) / kEntries * plan.shared_count));
  launch({grid, dim3(kEntries, kAdders), stream}, add_partials_kernel, plan, area, partials, grams);
}

}  // namespace koopfast::cuda
