// SPDX-License-Identifier: BSD-3-Clause
#include "moments.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "moment_kernels.h"
#include "parallel.h"

namespace koopfast {
namespace {

// Doubles of a tile: 64 KiB, so that the rows of small blocks stay in a level-1 cache and those of
// large ones in level 2.
constexpr int64_t kTileDoubles = 8192;
constexpr int64_t kLeastRows = 64;
// Pairs of a window that are summed by one thread, whatever the number of threads.
constexpr int64_t kPiece = 4096;

int64_t padded(int64_t weights) {
  return (weights + kMomentWidth - 1) / kMomentWidth * kMomentWidth;
}

// Sums of o_{t+q-a} o_{t+q-b}^T for the lags 0 <= a <= b <= q, each (n_b, padded n_b), transposed:
// the lower triangle of K, block by block.
class LagSums {
 public:
  LagSums(const MomentShape& shape, Moments wanted)
      : shape_(shape),
        wanted_(wanted),
        ld_(padded(shape.weights)),
        sums_(lags() * (lags() + 1) / 2 * shape.weights * ld_, 0.0) {}

  // Adds the pairs begin .. end-1 of a block's window.
  void add(const SnapshotView& s, const BlockTable& table, int64_t block, bool increments,
           int64_t begin, int64_t end) {
    const int64_t q = shape_.delays;
    const int64_t step = std::max(kLeastRows, kTileDoubles / ld_);
    // Columns that pad the rows stay zero.
    tile_.resize(std::max<size_t>(tile_.size(), (std::min(step, end - begin) + q) * ld_));
    for (int64_t t = begin; t < end; t += step) {
      const int64_t pairs = std::min(step, end - t);
      widen(s, table, block, increments, t, pairs + q, tile_.data());
      for (int64_t b = 0; b <= q; ++b)
        for (int64_t a = wanted_ == Moments::all || b > 0 ? 0 : 1; a <= b; ++a)
          add_products(tile_.data() + (q - b) * ld_, tile_.data() + (q - a) * ld_, pairs,
                       shape_.weights, ld_, a == b, of(a, b));
    }
  }

  void clear() { std::fill(sums_.begin(), sums_.end(), 0.0); }

  void add(const LagSums& other) {
    for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
  }

  // K, both triangles.
  void store(double* moments) const {
    const int64_t n = shape_.weights, full = shape_.pair();
    for (int64_t b = 0; b < lags(); ++b)
      for (int64_t a = 0; a <= b; ++a) {
        const double* own = of(a, b);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < (a == b ? i + 1 : n); ++j)
            moments[(b * n + i) * full + a * n + j] = moments[(a * n + j) * full + b * n + i] =
                own[i * ld_ + j];
      }
  }

 private:
  int64_t lags() const { return shape_.delays + 1; }
  size_t place(int64_t a, int64_t b) const { return (b * (b + 1) / 2 + a) * shape_.weights * ld_; }
  double* of(int64_t a, int64_t b) { return sums_.data() + place(a, b); }
  const double* of(int64_t a, int64_t b) const { return sums_.data() + place(a, b); }

  void widen(const SnapshotView& s, const BlockTable& table, int64_t block, bool increments,
             int64_t first, int64_t rows, double* tile) const {
    dispatch(s.dtype, [&](auto tag) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
      table.for_each_run(block, 0, shape_.weights,
                         [&](int64_t flat, int64_t column, int64_t length) {
                           widen_rows(s.row<T>(first) + flat, s.row_stride, rows, length,
                                      increments, tile + column, ld_);
                         });
    });
  }

  MomentShape shape_;
  Moments wanted_;
  int64_t ld_;
  std::vector<double> sums_, tile_;
};

int64_t pairs_of(const SnapshotView& s, bool increments, int64_t delays) {
  return s.m - (increments ? 1 : 0) - delays;
}

void store_latest(const SnapshotView& s, const BlockTable& table, int64_t block, bool increments,
                  const MomentShape& shape, double* latest) {
  const int64_t newest = s.m - (increments ? 2 : 1);
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    table.for_each_run(block, 0, shape.weights, [&](int64_t flat, int64_t column, int64_t length) {
      for (int64_t j = 0; j < shape.delays; ++j)
        widen_rows(s.row<T>(newest - j) + flat, s.row_stride, 1, length, increments,
                   latest + j * shape.weights + column, 0);
    });
  });
}

}  // namespace

void group_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   int64_t count, bool increments, int64_t delays, Moments wanted, double* moments,
                   double* latest, int64_t stride) {
  const MomentShape shape{table.block_size(blocks[0]), delays};
  const int64_t pairs = pairs_of(s, increments, delays);
  LagSums sums(shape, wanted);
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) sums.clear();
    sums.add(s, table, blocks[i], increments, 0, std::min(kPiece, pairs));
    for (int64_t t = kPiece; t < pairs; t += kPiece) {
      LagSums piece(shape, wanted);
      piece.add(s, table, blocks[i], increments, t, std::min(t + kPiece, pairs));
      sums.add(piece);
    }
    sums.store(moments + i * stride);
    store_latest(s, table, blocks[i], increments, shape, latest + i * stride);
  }
}

void snapshot_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                      int64_t count, bool increments, int64_t delays, Moments wanted,
                      const int64_t* moment_offsets, double* moments, const int64_t* latest_offsets,
                      double* latest, int threads) {
  const int64_t pairs = pairs_of(s, increments, delays), pieces = (pairs + kPiece - 1) / kPiece;
  if (count >= 4 * threads || pieces == 1)
    return parallel_for(count, threads, [&](int64_t i) {
      group_moments(s, table, blocks + i, 1, increments, delays, wanted,
                    moments + moment_offsets[i], latest + latest_offsets[i], 0);
    });
  // Few blocks of a long window: the same pieces, shared out, added in the same order.
  for (int64_t i = 0; i < count; ++i) {
    const MomentShape shape{table.block_size(blocks[i]), delays};
    std::vector<LagSums> sums(pieces, LagSums(shape, wanted));
    parallel_for(pieces, threads, [&](int64_t piece) {
      sums[piece].add(s, table, blocks[i], increments, piece * kPiece,
                      std::min((piece + 1) * kPiece, pairs));
    });
    for (int64_t piece = 1; piece < pieces; ++piece) sums[0].add(sums[piece]);
    sums[0].store(moments + moment_offsets[i]);
    store_latest(s, table, blocks[i], increments, shape, latest + latest_offsets[i]);
  }
}

}  // namespace koopfast
