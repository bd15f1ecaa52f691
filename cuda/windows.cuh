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
// flat vector, where vector loads are aligned; one of many short segments column by column. Columns
// are counted from the chunk's first one, of which 32 bits hold all: half the registers.
template <int Lanes>
class Windows {
 public:
  __device__ __forceinline__ Windows(const BlockTable& table, int64_t block, int64_t begin,
                                     int64_t end, int index)
      : table_(table), block_(block), begin_(begin), size_(static_cast<int>(end - begin)) {
    const int64_t segments = table.offsets[block + 1] - table.offsets[block];
    scattered_ = segments * kShortSegment > table.block_size(block);
    segment_ = scattered_ || begin >= end ? 0 : table.find_segment(block, begin);
    first_ = 4 * index;
    window_ = from_ = to_ = next_ = 0;  // no run yet
  }

  __device__ __forceinline__ bool scattered() const { return scattered_; }

  __device__ __forceinline__ bool next(Columns& at) {
    return scattered_ ? next_scattered(at) : next_of_run(at);
  }

  // The same where scattered() is known: a loop of its own keeps less in registers.
  __device__ __forceinline__ bool next_scattered(Columns& at) {
    if (next_ >= size_) return false;
    const int own = next_ + first_;
    at.column = begin_ + own;
    at.whole = false;
    int64_t segment = own < size_ ? table_.find_segment(block_, at.column) : 0;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      at.flat[s] = -1;
      if (own + s >= size_) continue;
      while (at.column + s >= table_.columns[segment] + table_.lengths[segment]) ++segment;
      at.flat[s] = table_.starts[segment] + at.column + s - table_.columns[segment];
    }
    next_ += kStep;
    return true;
  }

  __device__ __forceinline__ bool next_of_run(Columns& at) {
    if (window_ >= to_) {
      if (next_ >= size_) return false;
      const int64_t inside = begin_ + next_ - table_.columns[segment_];
      const int64_t left = table_.lengths[segment_] - inside;
      const int64_t flat = table_.starts[segment_] + inside;
      from_ = next_;
      to_ = left < size_ - from_ ? from_ + static_cast<int>(left) : size_;
      shift_ = flat - from_;
      window_ = from_ - static_cast<int>(flat % kStep);
      next_ = to_;
      ++segment_;
    }
    const int own = window_ + first_;
    at.column = begin_ + own;
    at.whole = own >= from_ && own + 4 <= to_;
#pragma unroll
    for (int s = 0; s < 4; ++s)
      at.flat[s] = own + s >= from_ && own + s < to_ ? shift_ + own + s : -1;
    window_ += kStep;
    return true;
  }

 private:
  static constexpr int kStep = 4 * Lanes;
  static constexpr int64_t kShortSegment = 32;

  const BlockTable& table_;
  int64_t block_, begin_, segment_;
  int64_t shift_;                   // from a column of the run at hand to its place
  int size_, next_;                 // of the chunk; the first column behind the run
  int from_, to_, window_, first_;  // the run, its window at hand, and this lane's place in one
  bool scattered_;
};

}  // namespace koopfast::cuda
