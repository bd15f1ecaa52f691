// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "block_table.h"
#include "tensor_view.h"
#include "tile_kernels.h"

namespace koopfast {

// Widens columns begin .. begin+count-1 of block b into `out`, (m, count) with rows `ld` doubles
// apart: the rows E of SnapshotRows. Increments are formed here in double: weights move by parts in
// a thousand, and single precision would lose the motion.
inline void gather_tile(const SnapshotView& s, const BlockTable& table, int64_t b, int64_t begin,
                        int64_t count, SnapshotRows wanted, double* out, int64_t ld) {
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    table.for_each_run(b, begin, begin + count, [&](int64_t flat, int64_t column, int64_t length) {
      double* first = out + (column - begin);
      const T* none = nullptr;
      const bool states = wanted == SnapshotRows::states;
      for (int64_t t = 0; t < s.m; ++t) {
        const T* row = s.row<T>(t) + flat;
        if (t == s.m - 1 && wanted == SnapshotRows::increments)
          std::fill_n(first + t * ld, length, 0.0);
        else if (!states && t < s.m - 1)
          widen_difference(row + s.row_stride, row, length, first + t * ld);
        else
          widen_difference(row, none, length, first + t * ld);
      }
    });
  });
}

// A piece of work small enough to share out evenly: columns begin .. end-1 of a block.
struct Chunk {
  int64_t position;  // which of the selected blocks
  int64_t block;
  int64_t begin;
  int64_t end;
};

// Cuts the selected blocks into chunks. Their number depends on the sizes alone, never on the
// number of threads, so that sums over chunks come out the same for every thread count.
inline std::vector<Chunk> cut_blocks(const BlockTable& table, const int64_t* blocks, int64_t count,
                                     int64_t most_per_block) {
  constexpr int64_t kLeastColumns = 16 * kTileColumns;
  std::vector<Chunk> chunks;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = table.block_size(blocks[i]);
    const int64_t pieces = std::clamp<int64_t>(size / kLeastColumns, 1, most_per_block);
    const int64_t tiles = (size + kTileColumns - 1) / kTileColumns;
    const int64_t step = (tiles + pieces - 1) / pieces * kTileColumns;
    for (int64_t begin = 0; begin < size; begin += step)
      chunks.push_back({i, blocks[i], begin, std::min(begin + step, size)});
  }
  return chunks;
}

}  // namespace koopfast
