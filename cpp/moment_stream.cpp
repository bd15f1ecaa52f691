// SPDX-License-Identifier: BSD-3-Clause
#include "moment_stream.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "operator_store.h"
#include "parallel.h"
#include "rank_hindcast.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"
#include "tile_kernels.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Blocks a thread takes at a time: most are small.
constexpr int64_t kBlocksTogether = 16;

int64_t first_recent(const MomentStream& m) { return m.folded > 0 ? m.folded - m.delays : 0; }

// `count` observables of block b from the snapshots of `view` on, a row each, `ld` doubles apart.
void observe(const MomentStream& m, const SnapshotView& view, const BlockTable& table, int64_t b,
             int64_t count, double* out, int64_t ld) {
  dispatch(view.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    table.for_each_run(b, 0, table.block_size(b), [&](int64_t flat, int64_t column, int64_t size) {
      const T* reference = m.head.row<T>(0) + flat;
      for (int64_t s = 0; s < count; ++s) {
        const T* row = view.row<T>(s) + flat;
        const T* next = m.increments ? row + view.row_stride : row;
        const T* from = m.increments ? row : reference;
        double* to = out + s * ld + column;
        if (size >= kColumnGroup)
          widen_difference(next, from, size, to);
        else  // a call would cost more than the work
          for (int64_t c = 0; c < size; ++c) to[c] = widen(next[c]) - widen(from[c]);
      }
    });
  });
}

// The same as columns.
Matrix observed(const MomentStream& m, const SnapshotView& view, const BlockTable& table, int64_t b,
                int64_t count) {
  Matrix o(table.block_size(b), count);
  observe(m, view, table, b, count, o.data(), o.rows());
  return o;
}

void fold_block(const MomentStream& m, const BlockTable& table, int64_t b, int64_t until,
                std::vector<double>& rows) {
  const int64_t size = table.block_size(b), q = m.delays;
  const int64_t ld = (size + kColumnGroup - 1) / kColumnGroup * kColumnGroup;
  const int64_t first = first_recent(m);
  rows.assign((until - first) * ld, 0.0);
  observe(m, m.recent, table, b, until - first, rows.data(), ld);
  for (int64_t k = 0; k <= q; ++k) {
    const int64_t start = m.folded > 0 ? first : q - k, count = until - q - start;
    const double* older = rows.data() + (start - first) * ld;
    add_outer_products(older + k * ld, older, count, size, ld,
                       m.lags + m.lag_offsets[b] + k * size * size);
  }
  if (m.increments) return;
  const int64_t start = m.folded > 0 ? first : q;
  for (int64_t s = start; s < until - q; ++s)
    for (int64_t c = 0; c < size; ++c) m.sums[m.sum_offsets[b] + c] += rows[(s - first) * ld + c];
}

// What is at hand of a block when it is fitted.
struct BlockMoments {
  const MomentStream& stream;
  int64_t size, lag_offset, sum_offset;
  Matrix head;    // (n_b, q) o_0 ...
  Matrix recent;  // (n_b, ...) o_first ...
  int64_t first;  // index of the first recent one
  Vector offset;  // what was taken from every observable: w_0 of states

  bool folded() const { return stream.folded > 0; }

  // sum_u o_{u-i} o_{u-j}^T over u = q .. end-1, for i <= j.
  Matrix part(int64_t i, int64_t j, int64_t end) const {
    const int64_t q = stream.delays, k = j - i;
    const int64_t start = folded() ? first : q - j, count = end - j - start;
    Matrix sum = recent.middleCols(start + k - first, count) *
                 recent.middleCols(start - first, count).transpose();
    if (!folded()) return sum;
    sum += Eigen::Map<const RowMajor>(stream.lags + lag_offset + k * size * size, size, size);
    sum += head.middleCols(q - i, i) * head.middleCols(q - j, i).transpose();
    return sum;
  }

  // sum_u o_{u-i} over u = q .. end-1, for states.
  Vector sum(int64_t i, int64_t end) const {
    const int64_t q = stream.delays, start = folded() ? first : q - i;
    Vector sum = recent.middleCols(start - first, end - i - start).rowwise().sum();
    if (!folded()) return sum;
    sum += Eigen::Map<const Vector>(stream.sums + sum_offset, size);
    return sum + head.middleCols(q - i, i).rowwise().sum();
  }

  // h = [o_{end-1}, ..., o_{end-q}], as observed.
  Vector newest(int64_t end) const {
    Vector h(stream.delays * size);
    for (int64_t i = 0; i < stream.delays; ++i)
      h.segment(i * size, size) = recent.col(end - 1 - i - first) + offset;
    return h;
  }
};

// L with L L^T = a, of rank `columns` at most, by Cholesky with pivots, which stops where only
// rounding is left: the columns from there on are zero.
Matrix pivoted_cholesky(Matrix a, int64_t columns) {
  const int64_t n = a.rows();
  const double least = 4 * std::numeric_limits<double>::epsilon() * a.diagonal().maxCoeff();
  Matrix l = Matrix::Zero(n, std::min(n, columns));
  for (int64_t k = 0; k < l.cols(); ++k) {
    Eigen::Index pivot = 0;
    const double largest = a.diagonal().maxCoeff(&pivot);
    if (!(largest > least)) break;
    l.col(k) = a.col(pivot) / std::sqrt(largest);
    a.noalias() -= l.col(k) * l.col(k).transpose();
    a.row(pivot).setZero();
    a.col(pivot).setZero();
  }
  return l;
}

// sum_u g_u g_u^T over u = q .. end-1, (D, D), D = (q + 1) n_b.
Matrix moments_of_pairs(const BlockMoments& block, int64_t end) {
  const int64_t n = block.size, parts = block.stream.delays + 1;
  Matrix k(parts * n, parts * n);
  for (int64_t i = 0; i < parts; ++i)
    for (int64_t j = i; j < parts; ++j) {
      k.block(i * n, j * n, n, n) = block.part(i, j, end);
      if (j > i) k.block(j * n, i * n, n, n) = k.block(i * n, j * n, n, n).transpose();
    }
  return k;
}

// G with G G^T = these moments `k`, (D, at most D + 1), of observables as they are: those of states
// are put back together from their mean and what is left about it, so that the motion keeps its
// digits beside the weights.
Matrix factor_of_pairs(const BlockMoments& block, Matrix k, int64_t end) {
  const int64_t n = block.size, parts = block.stream.delays + 1;
  const int64_t pairs = end - block.stream.delays;
  if (block.stream.increments) return pivoted_cholesky(std::move(k), pairs);
  const auto count = static_cast<double>(pairs);
  Vector mean(parts * n), weights(parts * n);
  for (int64_t i = 0; i < parts; ++i) {
    mean.segment(i * n, n) = block.sum(i, end) / count;
    weights.segment(i * n, n) = mean.segment(i * n, n) + block.offset;
  }
  k.noalias() -= count * mean * mean.transpose();
  const Matrix about = pivoted_cholesky(std::move(k), pairs - 1);
  Matrix g(parts * n, about.cols() + 1);
  g << about, std::sqrt(count) * weights;
  return g;
}

void fit_block(const MomentStream& m, const BlockTable& table, int64_t b, int64_t tail,
               FitOptions options, const OperatorArrays& out) {
  // To square states, mean and all, once more would lose what the sums about w_0 have kept.
  options.accurate = !m.increments;
  begin_block(options, out, b);
  const int64_t size = table.block_size(b), q = m.delays, first = first_recent(m);
  const int64_t observables = m.recent.m - (m.increments ? 1 : 0), end = first + observables;
  BlockMoments block{m, size, m.lag_offsets[b], m.sum_offsets[b], {}, {}, first, {}};
  block.head = observed(m, m.head, table, b, std::min(q, m.head.m - (m.increments ? 1 : 0)));
  block.recent = observed(m, m.recent, table, b, observables);
  block.offset = Vector::Zero(size);
  if (!m.increments)
    dispatch(m.head.dtype, [&](auto tag) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
      table.for_each_run(b, 0, size, [&](int64_t flat, int64_t column, int64_t length) {
        const T* none = nullptr;
        widen_difference(m.head.row<T>(0) + flat, none, length, block.offset.data() + column);
      });
    });
  const BlockShape shape{size, size};
  Matrix moments = moments_of_pairs(block, end);
  if (!moments.allFinite()) {
    out.status[b] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  int64_t limit = out.capacity[b];
  if (options.rank_rule == RankRule::hindcast && tail > 0) {
    const int64_t split = end - tail;
    const Matrix before = factor_of_pairs(block, moments_of_pairs(block, split), split);
    const Vector now = block.newest(split);
    Matrix later = block.recent.rightCols(tail);
    later.colwise() += block.offset;
    const Pairs head{before.bottomRows(q * size), before.topRows(q * size), now, split - q};
    limit = rank_by_hindcast(head, later, shape, options, limit, out.hindcast_error[b],
                             out.trusted_horizon[b]);
  }
  const Matrix g = factor_of_pairs(block, std::move(moments), end);
  const Vector newest = block.newest(end);
  const Pairs pairs{g.bottomRows(q * size), g.topRows(q * size), newest, end - q};
  const Reduced fit = reduce(pairs, shape, options, limit);
  store_block(fit, fit.image, options, out, b);
}

}  // namespace

void fold_moments(const MomentStream& stream, const BlockTable& table, int64_t n_blocks,
                  int64_t until, int threads) {
  const int64_t groups = (n_blocks + kBlocksTogether - 1) / kBlocksTogether;
  parallel_for(groups, threads, [&](int64_t group) {
    std::vector<double> rows;
    const int64_t end = std::min(n_blocks, (group + 1) * kBlocksTogether);
    for (int64_t b = group * kBlocksTogether; b < end; ++b)
      fold_block(stream, table, b, until, rows);
  });
}

void moment_fit(const MomentStream& stream, const BlockTable& table, int64_t n_blocks, int64_t tail,
                const FitOptions& options, const OperatorArrays& out, int threads) {
  parallel_for(n_blocks, threads,
               [&](int64_t b) { fit_block(stream, table, b, tail, options, out); });
}

}  // namespace koopfast
