// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "choice.h"
#include "hindcast.h"
#include "mixture.h"
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

// (m, k) coefficients of the snapshots that make up the columns of Phi, fitted to the last `count`.
Matrix snapshot_coefficients(const Reduced& fit, int64_t m, int64_t count,
                             const FitOptions& options) {
  // Column j of F' is the embedded h_{j+1}, whose newest observable has the index j + q; that of
  // F is one earlier.
  const Matrix& x = fit.combining;
  const int64_t newest = options.delays - (fit.of_next ? 0 : 1);
  const int64_t a = options.block_average, groups = count / a;
  Matrix c = Matrix::Zero(groups, x.cols());
  if (options.increments) c.middleRows(newest + 1, x.rows()) += x;
  const double sign = options.increments ? -1 : 1;
  c.middleRows(newest, x.rows()) += sign * x;
  if (groups == m) return c;
  // A group's mean is made of its snapshots; the oldest ones may belong to no group.
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

// A fit to the last snapshots, as its options say, and its lift.
struct Lifted {
  Reduced fit;
  Matrix lift;
};

class Block {
 public:
  Block(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
        const double* coordinates, const FitOptions& options)
      : motion(motion_of(s, table, b, form, coordinates, rows_of(options))),
        shape{std::max(motion.steps.rows(), motion.states.rows()), table.block_size(b)},
        m_(s.m),
        form_(form) {}

  Lifted fitted(const Matrix& h, const Member& member) const {
    Lifted own{reduce(h, shape, member.options, member.rank), Matrix()};
    own.lift = form_ == BlockForm::dual
                   ? snapshot_coefficients(own.fit, m_, member.snapshots, member.options)
                   : own.fit.image;
    return own;
  }

  Matrix observables(const Member& member) const {
    return embed(observe(motion, m_, member.snapshots, member.options), member.options.delays);
  }

  Vector start(int64_t average) const { return start_of(motion, m_, form_, average); }

  const Motion motion;
  const BlockShape shape;

 private:
  const int64_t m_;
  const BlockForm form_;
};

// Stores the mean of the members' operators. Those without a well-conditioned eigenbasis, or for
// which there is no room, are left out; false where no other is left.
bool store_mean(const Block& block, Choice& choice, const OperatorArrays& out, int64_t i) {
  Vector sigma;
  std::vector<Member> taken;
  std::unique_ptr<Mixture> mixture;
  for (const Member& member : choice.members) {
    Lifted own = block.fitted(block.observables(member), member);
    Matrix& op = own.fit.op;
    if (op.rows() == 0) continue;
    const Unstable unstable = member.options.unstable;
    const Eigenbasis basis =
        unstable == Unstable::keep ? eigenbasis(op) : move_to_unit_disc(op, own.lift, unstable);
    if (!basis.usable) continue;
    const int64_t a = member.options.block_average;
    if (!mixture) mixture = std::make_unique<Mixture>(own.lift.rows());
    if (!mixture->add(basis, own.fit.start, own.lift, block.start(a), a, member.weight,
                      out.capacity[i]))
      continue;
    if (taken.empty()) sigma = own.fit.sigma;
    taken.push_back(member);
  }
  if (taken.empty()) return false;
  for (Member& member : taken) member.weight /= mixture->weight();
  choice.members = std::move(taken);
  store_mixture(*mixture, sigma, out, i);
  return true;
}

void fit_one(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
             const double* coordinates, const FitOptions& options, const OperatorArrays& out,
             int64_t i) {
  begin_block(options, out, i);
  const Block block(s, table, b, form, coordinates, options);
  if (!block.motion.steps.allFinite() || !block.motion.states.allFinite()) {
    out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
    return;
  }
  Choice choice{{{options, s.m, out.capacity[i], 1}}, kNaN, kNaN};
  if (options.chosen != 0) choice = choose(block.motion, block.shape, options, out.capacity[i]);
  if (choice.members.size() > 1 && store_mean(block, choice, out, i)) {
    FitOptions mean = choice.members[0].options;
    mean.block_average = 1;  // whatever it is of: in recorded intervals
    note_options(mean, out, i);
    note_choice(choice, out, i);
    return;
  }
  choice.members.resize(1);
  Member& member = choice.members[0];
  member.weight = 1;
  const FitOptions& own = member.options;
  const Matrix h = block.observables(member);
  if (options.chosen == 0 && options.rank_rule == RankRule::hindcast) {
    member.rank = hindcast(h, block.shape, options, member.rank, choice.error, choice.trusted);
    choice.trusted *= static_cast<double>(options.block_average);
  }
  note_options(own, out, i);
  note_choice(choice, out, i);
  const Lifted lifted = block.fitted(h, member);
  if (own.block_average > 1) {
    const Vector start = block.start(own.block_average);
    Eigen::Map<Vector>(out.origins + out.origin_offsets[i], start.size()) = start;
  }
  store_block(lifted.fit, lifted.lift, own, out, i);
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
