// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "block_table.h"
#include "chunk_plan.h"
#include "launch.cuh"
#include "tensor_view.h"

// How a warp walks the columns of a chunk: four neighbouring columns a lane, loaded at once where
// they are neighbours in memory, lie inside the block and are aligned.
namespace koopfast::cuda {

template <typename T>
struct alignas(sizeof(T) >= 4 ? 16 : 8) Four {
  T value[4];
};

// Whether four columns that begin at a multiple of four can be loaded at once, in every row.
template <typename T>
bool aligned_rows(const void* data, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Four<T>) == 0 &&
         row_stride * sizeof(T) % alignof(Four<T>) == 0;
}

// Four columns of the flat vector; -1 where the chunk has none. `whole`: they follow one another,
// and `flat[0]` is a multiple of four.
struct Columns {
  int64_t flat[4];
  int64_t column;  // of the block, that of flat[0]; only where there is one
  bool whole;
};

template <typename T>
__device__ __forceinline__ void load(const T* row, const Columns& at, bool aligned, T (&out)[4]) {
  if (at.whole && aligned) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(row + at.flat[0]);
#pragma unroll
    for (int s = 0; s < 4; ++s) out[s] = four.value[s];
    return;
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) out[s] = at.flat[s] >= 0 ? row[at.flat[s]] : T{};
}

template <typename T>
__device__ __forceinline__ void store(const Four<T>& four, const Columns& at, bool aligned,
                                      T* row) {
  if (at.whole && aligned) {
    *reinterpret_cast<Four<T>*>(row + at.flat[0]) = four;
    return;
  }
#pragma unroll
  for (int s = 0; s < 4; ++s)
    if (at.flat[s] >= 0) row[at.flat[s]] = four.value[s];
}

// The windows of `Lanes` x 4 columns of a chunk, one after another; each lane sees its own part,
// lane `index` of `Lanes`. All lanes of a warp see the same number of windows. A block whose
// segments are long is walked run by run, in windows that begin at multiples of their length in the
// flat vector, where vector loads are aligned; one of many short segments column by column.
template <int Lanes>
class Windows {
 public:
  __device__ __forceinline__ Windows(const BlockTable& table, int64_t block, int64_t begin,
                                     int64_t end, int index)
      : table_(table), block_(block), next_(begin), end_(end), index_(index) {
    const int64_t segments = table.offsets[block + 1] - table.offsets[block];
    scattered_ = segments * kShortSegment > table.block_size(block);
    segment_ = scattered_ || begin >= end ? 0 : table.find_segment(block, begin);
    window_ = to_ = 0;  // no run yet
  }

  __device__ __forceinline__ bool next(Columns& at) {
    if (scattered_) {
      if (next_ >= end_) return false;
      at.column = next_ + 4 * index_;
      at.whole = false;
#pragma unroll
      for (int s = 0; s < 4; ++s)
        at.flat[s] = at.column + s < end_ ? table_.flat_index(block_, at.column + s) : -1;
      next_ += kStep;
      return true;
    }
    if (window_ >= to_) {
      if (next_ >= end_) return false;
      const int64_t inside = next_ - table_.columns[segment_];
      const int64_t left = table_.lengths[segment_] - inside;
      const int64_t length = left < end_ - next_ ? left : end_ - next_;
      from_ = table_.starts[segment_] + inside;
      to_ = from_ + length;
      first_ = next_;
      window_ = from_ - from_ % kStep;
      next_ += length;
      ++segment_;
    }
    const int64_t flat = window_ + 4 * index_;
    at.column = first_ + flat - from_;
    at.whole = flat >= from_ && flat + 4 <= to_;
#pragma unroll
    for (int s = 0; s < 4; ++s) at.flat[s] = flat + s >= from_ && flat + s < to_ ? flat + s : -1;
    window_ += kStep;
    return true;
  }

 private:
  static constexpr int64_t kStep = 4 * Lanes;
  static constexpr int64_t kShortSegment = 32;

  const BlockTable& table_;
  int64_t block_, next_, end_, segment_;
  int64_t from_, to_, first_, window_;  // the run at hand, and the column of its first weight
  int index_;
  bool scattered_;
};

}  // namespace koopfast::cuda
