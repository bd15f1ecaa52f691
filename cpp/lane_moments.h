// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "lane_kernels.h"
#include "moments.h"
#include "tensor_view.h"

namespace koopfast {

// The second moments of moments.h of up to eight blocks of one size, side by side from the start:
// the snapshots are turned into lanes as they are read, and the sums are what a fit takes.
class LaneMoments {
 public:
  // Of `count` blocks; lanes to spare repeat them.
  LaneMoments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
              bool increments, int64_t delays);

  // Adds the pairs begin .. end-1 of the windows: many in parts, which lanes to spare take. They
  // are the same parts for any number of blocks, so that what stands beside a block does not
  // matter.
  void add(int64_t begin, int64_t end);
  // Adds the sums of others.
  void add(const LaneMoments& others);

  // G = F F^T and C = F' F^T (d, d), and h_{p+1} (d,).
  void store(LaneArray& square, LaneArray& crossed, LaneArray& latest) const;

  static int64_t entries(const MomentShape& shape) {
    return ((shape.delays + 1) * (shape.delays + 2) / 2 - 1) * shape.weights * shape.weights;
  }
  static int64_t bytes(const MomentShape& shape) { return entries(shape) * kLaneCount * 8; }

 private:
  // Adds to `sums` the pairs begin .. begin+length-1, and in the lanes of further parts as many
  // pairs `apart`, 2 `apart`, ... later.
  void add_rows(int64_t begin, int64_t length, int64_t apart, LaneArray& sums) const;
  // Observables first .. first+rows-1, (rows, n_b), into the tile; `apart` as above.
  void widen(int64_t first, int64_t rows, double* tile, int64_t apart = 0) const;
  // Where K[a n_b + i, b n_b + j], 1 <= b, a <= b, begin in the sums.
  int64_t place(int64_t a, int64_t b) const;

  const SnapshotView& s_;
  const BlockTable& table_;
  int64_t count_, blocks_[kLaneCount];
  MomentShape shape_;
  bool increments_;
  LaneArray sums_;
};

}  // namespace koopfast
