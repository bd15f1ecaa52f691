// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "host_device.h"

namespace koopfast {

// How the selected blocks are cut into the columns that one warp takes: made once for a partition
// by `ChunkPlan` of _device.py, read by every kernel that sees the snapshots. Chunk c is columns
// begin(c) .. end(c, size)-1 of the block at position owners[c]; a block's chunks follow one
// another. What a chunk holds depends on the sizes alone, so that sums come out the same always.
struct ChunkPlan {
  const int64_t* owners;  // (count,) position among the selected blocks
  const int64_t* first;   // (positions + 1,) first chunk of each position
  const int64_t* steps;   // (positions,) columns of a chunk
  const int64_t* slots;   // (positions,) first partial sum of a block of several chunks, else -1
  const int64_t* shared;  // (shared_count,) positions that have slots
  int64_t count;          // chunks
  int64_t shared_count;   // blocks of several chunks

  KF_HD int64_t begin(int64_t chunk) const {
    const int64_t position = owners[chunk];
    return (chunk - first[position]) * steps[position];
  }

  KF_HD int64_t end(int64_t chunk, int64_t size) const {
    const int64_t end = begin(chunk) + steps[owners[chunk]];
    return end < size ? end : size;
  }
};

}  // namespace koopfast
