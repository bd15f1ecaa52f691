// SPDX-License-Identifier: BSD-3-Clause
#include "lane_moments.h"

#include <algorithm>
#include <vector>

#include "moment_kernels.h"

namespace koopfast {
namespace {

// Bytes of a tile: it stays in a level-1 cache while the products of its rows are summed.
constexpr int64_t kTileBytes = 40960;
constexpr int64_t kLeastRows = 8;
// Parts of a long window that are summed apart, and the fewest rows of one.
constexpr int64_t kParts = kLaneCount, kLeastPart = 64;
constexpr int64_t kEntryBytes = kLaneCount * sizeof(double);

// (n, n) entries, or their transpose, to (rows, ld).
void copy_entries(const double* from, int64_t n, bool transposed, double* out, int64_t ld) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      std::copy_n(from + (transposed ? j * n + i : i * n + j) * kLaneCount, kLaneCount,
                  out + (i * ld + j) * kLaneCount);
}

}  // namespace

LaneMoments::LaneMoments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                         int64_t count, bool increments, int64_t delays)
    : s_(s),
      table_(table),
      count_(count),
      shape_{table.block_size(blocks[0]), delays},
      increments_(increments),
      sums_(entries(shape_)) {
  for (int l = 0; l < kLaneCount; ++l) blocks_[l] = blocks[l % count];
  sums_.clear();
}

int64_t LaneMoments::place(int64_t a, int64_t b) const {
  const int64_t n = shape_.weights;
  return (b * (b + 1) / 2 + a - 1) * n * n * kLaneCount;
}

void LaneMoments::widen(int64_t first, int64_t rows, double* tile, int64_t apart) const {
  const int64_t n = shape_.weights, read = rows + (increments_ ? 1 : 0);
  const int64_t busy = kLaneCount / count_ * count_;  // lanes beyond repeat the first part
  dispatch(s_.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    const T* from[kLaneCount];
    int64_t stride = s_.row_stride;
    int64_t begin[kLaneCount];
    for (int l = 0; l < kLaneCount; ++l) begin[l] = first + (l < busy ? l / count_ * apart : 0);
    bool whole = true;
    for (int l = 0; l < kLaneCount; ++l)
      table_.for_each_run(blocks_[l], 0, n, [&](int64_t flat, int64_t, int64_t length) {
        from[l] = s_.row<T>(begin[l]) + flat;
        whole = whole && length == n;
      });
    std::vector<T> copy;
    if (!whole) {
      copy.resize(kLaneCount * read * n);
      stride = n;
      for (int l = 0; l < kLaneCount; ++l) {
        T* own = copy.data() + l * read * n;
        from[l] = own;
        table_.for_each_run(blocks_[l], 0, n, [&](int64_t flat, int64_t column, int64_t length) {
          for (int64_t t = 0; t < read; ++t)
            std::copy_n(s_.row<T>(begin[l] + t) + flat, length, own + t * n + column);
        });
      }
    }
    lane_widen(from, stride, read, n, tile);
  });
  if (increments_) lane_differences(rows * n, n, tile);
}

void LaneMoments::add(int64_t begin, int64_t end) {
  const int64_t length = (end - begin) / kParts, at_once = kLaneCount / count_;
  if (length >= kLeastPart) {
    LaneArray part(entries(shape_)), total(entries(shape_));
    total.clear();
    for (int64_t p = 0; p < kParts; p += at_once) {
      part.clear();
      add_rows(begin + p * length, length, length, part);
      for (int64_t e = 0; e < entries(shape_); ++e) {
        const double* from = part.data() + e * kLaneCount;
        double* to = total.data() + e * kLaneCount;
        for (int64_t i = 0; i < at_once; ++i, from += count_)
          for (int64_t l = 0; l < count_; ++l) to[l] += from[l];
      }
    }
    int64_t block[kLaneCount];
    for (int64_t l = 0; l < kLaneCount; ++l) block[l] = l % count_;
    for (int64_t e = 0; e < entries(shape_); ++e)
      for (int64_t l = 0; l < kLaneCount; ++l) sums_.at(e, l) += total.at(e, block[l]);
    begin += kParts * length;
  }
  add_rows(begin, end - begin, 0, sums_);
}

void LaneMoments::add_rows(int64_t begin, int64_t length, int64_t apart, LaneArray& sums) const {
  const int64_t n = shape_.weights, q = shape_.delays, row = n * kLaneCount;
  const int64_t step = std::max(kLeastRows, kTileBytes / (n * kEntryBytes));
  LaneArray tile((std::min(step, length) + q + 1) * n);
  for (int64_t t = 0; t < length; t += step) {
    const int64_t rows = std::min(step, length - t);
    widen(begin + t, rows + q, tile.data(), apart);
    for (int64_t b = 1; b <= q; ++b)
      for (int64_t a = 0; a <= b; ++a)
        lane_add_products(tile.data() + (q - a) * row, tile.data() + (q - b) * row, rows, n, a == b,
                          sums.data() + place(a, b));
  }
}

void LaneMoments::add(const LaneMoments& others) {
  const int64_t size = entries(shape_) * kLaneCount;
  for (int64_t i = 0; i < size; ++i) sums_.data()[i] += others.sums_.data()[i];
}

void LaneMoments::store(LaneArray& square, LaneArray& crossed, LaneArray& latest) const {
  const int64_t n = shape_.weights, q = shape_.delays, d = q * n;
  const auto of = [&](int64_t a, int64_t b) { return sums_.data() + place(a, b); };
  const auto at = [&](LaneArray& out, int64_t i, int64_t j) {
    return out.data() + (i * n * d + j * n) * kLaneCount;
  };
  for (int64_t b = 1; b <= q; ++b)
    for (int64_t a = 0; a <= b; ++a) {
      if (a < q) copy_entries(of(a, b), n, false, at(crossed, a, b - 1), d);
      // K is symmetric: the same sums stand for the lags the other way round.
      if (0 < a && a < b && b < q) copy_entries(of(a, b), n, true, at(crossed, b, a - 1), d);
      if (a == 0) continue;
      copy_entries(of(a, b), n, false, at(square, a - 1, b - 1), d);
      if (a < b) copy_entries(of(a, b), n, true, at(square, b - 1, a - 1), d);
    }
  const int64_t newest = s_.m - (increments_ ? 2 : 1);
  for (int64_t j = 0; j < q; ++j) {
    LaneArray rows(2 * n);
    widen(newest - j, 1, rows.data());
    std::copy_n(rows.data(), n * kLaneCount, latest.data() + j * n * kLaneCount);
  }
}

}  // namespace koopfast
