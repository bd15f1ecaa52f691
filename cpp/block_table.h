// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>

#include "host_device.h"

namespace koopfast {

// A partition of the flat vector: block b is the contiguous segments offsets[b] .. offsets[b+1]-1,
// segment i the `lengths[i]` weights from `starts[i]` on. `columns[i]` counts the weights of the
// same block before segment i, so that a column of a block is found by bisection.
struct BlockTable {
  const int64_t* offsets;  // (n_blocks + 1,)
  const int64_t* starts;   // (n_segments,)
  const int64_t* lengths;  // (n_segments,)
  const int64_t* columns;  // (n_segments,)

  KF_HD int64_t block_size(int64_t b) const {
    const int64_t first = offsets[b], last = offsets[b + 1] - 1;
    return last < first ? 0 : columns[last] + lengths[last];
  }

  // The segment of block b that holds the block's column `column`.
  KF_HD int64_t find_segment(int64_t b, int64_t column) const {
    int64_t low = offsets[b], high = offsets[b + 1] - 1;
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (columns[middle] <= column)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

  // Where column `column` of block b is in the flat vector.
  KF_HD int64_t flat_index(int64_t b, int64_t column) const {
    const int64_t segment = find_segment(b, column);
    return starts[segment] + column - columns[segment];
  }

  // Calls visit(flat, column, length) for the contiguous runs of columns begin .. end-1.
  template <typename Visit>
  void for_each_run(int64_t b, int64_t begin, int64_t end, Visit&& visit) const {
    for (int64_t i = find_segment(b, begin); begin < end; ++i) {
      const int64_t inside = begin - columns[i];
      const int64_t length = std::min(lengths[i] - inside, end - begin);
      visit(starts[i] + inside, begin, length);
      begin += length;
    }
  }
};

}  // namespace koopfast
