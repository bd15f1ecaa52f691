// SPDX-License-Identifier: BSD-3-Clause
#include "snapshot_svd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gram_kernel.h"
#include "lane_kernels.h"
#include "parallel.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

// Partial Gram matrices of a block may take this much memory together.
constexpr int64_t kPartialBytes = int64_t{64} << 20;
constexpr int64_t kMostChunks = 64;
// Singular values below this share of the largest are noise: a Gram matrix squares them.
constexpr double kGramNoise = 1e-8;

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int64_t padded(int64_t count, int64_t group) { return (count + group - 1) / group * group; }

// Where column `column` of block b begins in the first snapshot, for as long as the tile that
// starts there goes on in the same run; nothing past the chunk.
Upcoming upcoming(const SnapshotView& s, const BlockTable& table, const Chunk& chunk,
                  int64_t column) {
  const int64_t size = size_of(s.dtype);
  const int64_t end = std::min(column + kGramColumns, chunk.end);
  if (column >= end) return {nullptr, 0, 0};
  const int64_t i = table.find_segment(chunk.block, column), inside = column - table.columns[i];
  return {static_cast<const char*>(s.data) + (table.starts[i] + inside) * size, s.row_stride * size,
          std::min(end - column, table.lengths[i] - inside) * size};
}

// Adds the Gram matrix of a chunk to `gram` (rows, rows), rows = padded(m), lower row groups only.
void gram_of_chunk(const SnapshotView& s, const BlockTable& table, const Chunk& chunk,
                   SnapshotRows wanted, double* gram) {
  const int64_t rows = padded(s.m, kGramRows);
  LaneArray tile(rows * kGramColumns, 1), sums(gram_sums_size(rows), 1);
  std::fill_n(tile.data() + s.m * kGramColumns, (rows - s.m) * kGramColumns, 0.0);
  sums.clear();
  for (int64_t c = chunk.begin; c < chunk.end; c += kGramColumns) {
    const int64_t count = std::min(kGramColumns, chunk.end - c);
    gather_tile(s, table, chunk.block, c, count, wanted, tile.data(), kGramColumns);
    const int64_t columns = padded(count, kGramLanes);
    for (int64_t t = 0; t < s.m; ++t)
      std::fill(tile.data() + t * kGramColumns + count, tile.data() + t * kGramColumns + columns,
                0.0);
    gram_tile(tile.data(), rows, columns, upcoming(s, table, chunk, c + count), sums.data());
  }
  add_gram_sums(sums.data(), rows, gram);
}

// N = Sigma V^T into the first s of m rows, sigma into the first s of m entries, zeros after.
void store_coordinates(const Vector& sigma, const Matrix& v, int64_t s, int64_t m,
                       double* coordinates, double* sigma_out) {
  std::fill_n(sigma_out, m, 0.0);
  std::fill_n(coordinates, m * m, 0.0);
  Eigen::Map<RowMajor> out(coordinates, m, m);
  for (int64_t i = 0; i < s; ++i) {
    sigma_out[i] = sigma(i);
    out.row(i).head(v.rows()) = sigma(i) * v.col(i).transpose();
  }
}

// The last column of N, beside s directions: w_m's components in them, and its length outside.
void store_last(const Eigen::Ref<const Vector>& components, double outside, int64_t m,
                double* coordinates) {
  Eigen::Map<RowMajor> out(coordinates, m, m);
  out.col(m - 1).head(components.size()) = components;
  out(components.size(), m - 1) = outside;
}

void store_failure(int64_t m, double* coordinates, double* sigma_out) {
  std::fill_n(coordinates, m * m, std::numeric_limits<double>::quiet_NaN());
  std::fill_n(sigma_out, m, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

void snapshot_gram(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   int64_t count, SnapshotRows wanted, double* grams, int threads) {
  const int64_t rows = padded(s.m, kGramRows), area = rows * rows;
  const int64_t most = std::clamp<int64_t>(kPartialBytes / (8 * area), 1, kMostChunks);
  const std::vector<Chunk> chunks = cut_blocks(table, blocks, count, most);
  std::fill_n(grams, count * s.m * s.m, 0.0);
  // A block of one chunk is summed where it stands; the others keep a partial matrix a chunk,
  // added up afterwards in the order of the chunks.
  std::vector<int64_t> slot(chunks.size(), -1);
  int64_t slots = 0;
  for (size_t i = 0; i < chunks.size(); ++i)
    if (chunks[i].end - chunks[i].begin < table.block_size(chunks[i].block)) slot[i] = slots++;
  std::vector<double> partials(slots * area, 0.0);

  const auto add = [&](const double* gram, int64_t position) {
    double* out = grams + position * s.m * s.m;
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        out[i * s.m + j] += gram[i * rows + j];
        out[j * s.m + i] = out[i * s.m + j];
      }
  };
  parallel_for(static_cast<int64_t>(chunks.size()), threads, [&](int64_t i) {
    if (slot[i] >= 0) {
      gram_of_chunk(s, table, chunks[i], wanted, partials.data() + slot[i] * area);
      return;
    }
    std::vector<double> whole(area, 0.0);
    gram_of_chunk(s, table, chunks[i], wanted, whole.data());
    add(whole.data(), chunks[i].position);
  });
  for (size_t i = 0; i < chunks.size(); ++i)
    if (slot[i] >= 0) add(partials.data() + slot[i] * area, chunks[i].position);
}

void gram_svd(double* grams, const int64_t* sizes, int64_t count, int64_t m, SnapshotRows wanted,
              double* sigma, int threads) {
  const bool last = wanted == SnapshotRows::increments_and_last;
  parallel_for(count, threads, [&](int64_t i) {
    double* gram = grams + i * m * m;
    const int64_t s = std::min(last ? m - 1 : m, sizes[i]);
    const Matrix g = Eigen::Map<RowMajor>(gram, m, m);
    if (!g.allFinite()) return store_failure(m, gram, sigma + i * m);
    Vector values;
    Matrix vectors;
    symmetric_eigen(last ? g.topLeftCorner(m - 1, m - 1) : g, values, vectors);
    values = values.cwiseMax(0.0).cwiseSqrt().eval();
    store_coordinates(values, vectors, s, m, gram, sigma + i * m);
    if (!last) return;
    // <q_j, w_m> = v_j^T E w_m / sigma_j, where sigma_j is more than the noise of a Gram matrix.
    Vector components = vectors.leftCols(s).transpose() * g.col(m - 1).head(m - 1);
    for (int64_t j = 0; j < s; ++j)
      components(j) = values(j) > kGramNoise * values(0) ? components(j) / values(j) : 0.0;
    const double outside = g(m - 1, m - 1) - components.squaredNorm();
    store_last(components, std::sqrt(std::max(0.0, outside)), m, gram);
  });
}

void snapshot_qr(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                 int64_t count, SnapshotRows wanted, double* coordinates, double* sigma,
                 int threads) {
  const std::vector<Chunk> chunks = cut_blocks(table, blocks, count, kMostChunks);
  std::vector<Matrix> factors(chunks.size());
  parallel_for(static_cast<int64_t>(chunks.size()), threads, [&](int64_t i) {
    const Chunk& chunk = chunks[i];
    const int64_t step = std::max(kTileColumns, 4 * s.m);
    Matrix rows, r(0, s.m);
    for (int64_t c = chunk.begin; c < chunk.end; c += step) {
      const int64_t length = std::min(step, chunk.end - c);
      rows.resize(length, s.m);  // a row-major (m, length) tile is this matrix, column by column
      gather_tile(s, table, chunk.block, c, length, wanted, rows.data(), length);
      append_to_qr(rows, r);
    }
    factors[i] = std::move(r);
  });
  std::vector<int64_t> first(count + 1, 0);
  for (const Chunk& chunk : chunks) ++first[chunk.position + 1];
  for (int64_t i = 0; i < count; ++i) first[i + 1] += first[i];
  parallel_for(count, threads, [&](int64_t i) {
    Matrix r = std::move(factors[first[i]]);
    for (int64_t c = first[i] + 1; c < first[i + 1]; ++c) append_to_qr(factors[c], r);
    const int64_t rank = std::min(wanted == SnapshotRows::increments_and_last ? s.m - 1 : s.m,
                                  table.block_size(blocks[i]));
    double* out = coordinates + i * s.m * s.m;
    if (!r.allFinite()) return store_failure(s.m, out, sigma + i * s.m);
    Matrix u, v;
    Vector values;
    if (wanted != SnapshotRows::increments_and_last) {
      thin_svd(r, u, values, v);
      return store_coordinates(values, v, rank, s.m, out, sigma + i * s.m);
    }
    thin_svd(r.leftCols(s.m - 1), u, values, v);
    const int64_t kept = std::min(rank, values.size());
    store_coordinates(values, v, kept, s.m, out, sigma + i * s.m);
    const Vector components = u.leftCols(kept).transpose() * r.col(s.m - 1);
    store_last(components, (r.col(s.m - 1) - u.leftCols(kept) * components).norm(), s.m, out);
  });
}

}  // namespace koopfast
