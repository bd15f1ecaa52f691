// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include <algorithm>
#include <utility>

#include "hindcast.h"
#include "operator_store.h"
#include "parallel.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The observables o_t of a block as columns: in coordinates (dual) or as they are (primal).
Matrix observed(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
                const double* coordinates, bool increments) {
  const int64_t size = table.block_size(b), count = increments ? s.m - 1 : s.m;
  if (form == BlockForm::dual)
    return Eigen::Map<const RowMajor>(coordinates, std::min(s.m, size), s.m).leftCols(count);
  RowMajor rows(s.m, size);
  gather_tile(s, table, b, 0, size, increments, rows.data(), size);
  return rows.topRows(count).transpose();
}

// h_t = [o_t, o_{t-1}, ...]: (s q, P - q + 1), the newest observable on top.
Matrix embed(const Matrix& o, int64_t delays) {
  if (delays == 1) return o;
  const int64_t s = o.rows(), count = o.cols() - delays + 1;
  Matrix h(s * delays, count);
  for (int64_t j = 0; j < delays; ++j) h.middleRows(j * s, s) = o.middleCols(delays - 1 - j, count);
  return h;
}

// (m, k) coefficients of the snapshots that make up the columns of Phi.
Matrix snapshot_coefficients(const Reduced& fit, int64_t m, const FitOptions& options) {
  // Column j of F' is the embedded h_{j+1}, whose newest observable has the index j + q; that of
  // F is one earlier.
  const Matrix& x = fit.combining;
  const int64_t newest = options.delays - (fit.of_next ? 0 : 1);
  Matrix c = Matrix::Zero(m, x.cols());
  if (options.increments) c.middleRows(newest + 1, x.rows()) += x;
  const double sign = options.increments ? -1 : 1;
  c.middleRows(newest, x.rows()) += sign * x;
  return c;
}

void fit_one(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
             const double* coordinates, const FitOptions& options, const OperatorArrays& out,
             int64_t i) {
  begin_block(out, i);
  const Matrix o = observed(s, table, b, form, coordinates, options.increments);
  if (!o.allFinite()) {
    out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  const Matrix h = embed(o, options.delays);
  const BlockShape shape{o.rows(), table.block_size(b)};
  int64_t limit = out.capacity[i];
  if (options.rank_rule == RankRule::hindcast)
    limit = hindcast(h, shape, options, limit, out.hindcast_error[i], out.trusted_horizon[i]);
  const Reduced fit = reduce(h, shape, options, limit);
  Matrix lift = form == BlockForm::dual ? snapshot_coefficients(fit, s.m, options) : fit.image;
  store_block(fit, std::move(lift), options, out, i);
}

}  // namespace

void operator_fit(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                  int64_t count, BlockForm form, const double* coordinates,
                  const FitOptions& options, const OperatorArrays& out, int threads) {
  parallel_for(count, threads, [&](int64_t i) {
    const double* own = form == BlockForm::dual ? coordinates + i * s.m * s.m : nullptr;
    fit_one(s, table, blocks[i], form, own, options, out, i);
  });
}

}  // namespace koopfast
