// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "choice.h"
#include "hindcast.h"
#include "motion.h"
#include "operator_store.h"
#include "parallel.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A block's motion in coordinates (dual) or as it is (primal).
Motion motion_of(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
                 const double* coordinates, SnapshotRows wanted) {
  const int64_t size = table.block_size(b);
  RowMajor own;
  if (form == BlockForm::primal) {
    own.resize(s.m, size);
    gather_tile(s, table, b, 0, size, wanted, own.data(), size);
  }
  const Matrix e = form == BlockForm::primal
                       ? Matrix(own.transpose())
                       : Matrix(Eigen::Map<const RowMajor>(coordinates, std::min(s.m, size), s.m));
  if (wanted == SnapshotRows::states) return {Matrix(), e};
  Motion motion{e.leftCols(s.m - 1), Matrix()};
  if (wanted == SnapshotRows::increments) return motion;
  motion.states = e;
  for (int64_t t = s.m - 2; t >= 0; --t) motion.states.col(t) = motion.states.col(t + 1) - e.col(t);
  return motion;
}

// (m, k) coefficients of the snapshots that make up the columns of Phi.
Matrix snapshot_coefficients(const Reduced& fit, int64_t m, const FitOptions& options) {
  // Column j of F' is the embedded h_{j+1}, whose newest observable has the index j + q; that of
  // F is one earlier.
  const Matrix& x = fit.combining;
  const int64_t newest = options.delays - (fit.of_next ? 0 : 1);
  const int64_t a = options.block_average, groups = m / a;
  Matrix c = Matrix::Zero(groups, x.cols());
  if (options.increments) c.middleRows(newest + 1, x.rows()) += x;
  const double sign = options.increments ? -1 : 1;
  c.middleRows(newest, x.rows()) += sign * x;
  if (a == 1) return c;
  // A group's mean is made of its snapshots; the oldest few may belong to no group.
  Matrix spread = Matrix::Zero(m, x.cols());
  for (int64_t t = 0; t < groups * a; ++t)
    spread.row(m - groups * a + t) = c.row(t / a) / static_cast<double>(a);
  return spread;
}

// Where the last group's mean lies from w_m: coefficients of the snapshots (dual), or weights.
Vector start_of(const Motion& motion, int64_t m, BlockForm form, int64_t average) {
  if (form == BlockForm::primal) return origin(motion, m, average);
  Vector c = Vector::Zero(m);
  if (average > 1) c.tail(average).setConstant(1.0 / static_cast<double>(average));
  return c;
}

void fit_one(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
             const double* coordinates, const FitOptions& options, const OperatorArrays& out,
             int64_t i) {
  begin_block(options, out, i);
  const Motion motion = motion_of(s, table, b, form, coordinates, rows_of(options));
  if (!motion.steps.allFinite() || !motion.states.allFinite()) {
    out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  const int64_t coordinate_rows = std::max(motion.steps.rows(), motion.states.rows());
  const BlockShape shape{coordinate_rows, table.block_size(b)};
  Choice choice{options, out.capacity[i], kNaN, kNaN};
  if (options.chosen != 0) choice = choose(motion, shape, options, out.capacity[i]);
  const FitOptions& own = choice.options;
  const Matrix h = embed(observe(motion, s.m, own), own.delays);
  if (options.chosen == 0 && options.rank_rule == RankRule::hindcast) {
    choice.rank = hindcast(h, shape, options, choice.rank, choice.error, choice.trusted);
    choice.trusted *= static_cast<double>(options.block_average);
  }
  out.hindcast_error[i] = choice.error;
  out.trusted_horizon[i] = choice.trusted;
  note_options(own, out, i);
  const Reduced fit = reduce(h, shape, own, choice.rank);
  if (own.block_average > 1) {
    const Vector start = start_of(motion, s.m, form, own.block_average);
    Eigen::Map<Vector>(out.origins + out.origin_offsets[i], start.size()) = start;
  }
  const Matrix lift = form == BlockForm::dual ? snapshot_coefficients(fit, s.m, own) : fit.image;
  store_block(fit, lift, own, out, i);
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
