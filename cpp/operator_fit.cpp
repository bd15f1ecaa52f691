// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "choice.h"
#include "eigen_lanes.h"
#include "hindcast.h"
#include "lane_groups.h"
#include "lane_kernels.h"
#include "mixture.h"
#include "motion.h"
#include "operator_store.h"
#include "parallel.h"
#include "reduced_lanes.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
// Operators are chosen for so many blocks together, which fill the lanes of an eigenproblem; for
// fewer where they have more snapshots than this: candidates' predictions are as large as these.
constexpr int64_t kTogether = 2 * kLaneCount, kMostEntries = int64_t{1} << 19;
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
  Eigenbasis basis;   // of a member of a mean
  double radius = 1;  // where its eigenvalues may lie
};

class Block {
 public:
  Block(const SnapshotView& s, const BlockTable& table, int64_t b, BlockForm form,
        const double* coordinates, const FitOptions& options)
      : motion(motion_of(s, table, b, form, coordinates, rows_of(options))),
        shape{std::max(motion.steps.rows(), motion.states.rows()), table.block_size(b)},
        m_(s.m),
        form_(form) {}

  Matrix observables(const Member& member) const {
    return observe(motion, m_, member.snapshots, member.options);
  }

  Matrix lift(const Reduced& fit, const Member& member) const {
    return form_ == BlockForm::dual
               ? snapshot_coefficients(fit, m_, member.snapshots, member.options)
               : fit.image;
  }

  Vector start(int64_t average) const { return start_of(motion, m_, form_, average); }

  // What dividing a member's eigenvalues adds to its error, which no hindcast has seen. It takes a
  // share away from the next increment, and of later ones as much again every group: of the
  // displacement after T groups (a third of the window) that share times (T + 1) / 2.
  double error_of_bound(const Lifted& own, const Vector& divisor, int64_t average) const {
    if (!(divisor.maxCoeff() > 1)) return 0;
    const Eigenbasis& basis = own.basis;
    const Vector lost = 1 - divisor.cwiseInverse().array();
    const Vector taken =
        (basis.vectors * lost.asDiagonal() * (basis.inverse * own.fit.start)).real();
    const double share = (own.fit.image * taken).norm() / (own.fit.image * own.fit.start).norm();
    const auto tail = static_cast<double>(std::max<int64_t>(1, (m_ - 1) / 3));
    return share * (tail / static_cast<double>(average) + 1) / 2;
  }

  Motion motion;
  BlockShape shape;

 private:
  const int64_t m_;
  const BlockForm form_;
};

// A member, its fit, and what divides its eigenvalues.
struct Usable {
  Member member;
  const Lifted* own;
  Vector divisor;
};

// Those with a well-conditioned eigenbasis, weighted by the inverse of their errors with what
// bounds add to them, heaviest first.
std::vector<Usable> usable_members(const Block& block, const Choice& choice,
                                   const std::vector<Lifted>& fits) {
  std::vector<Usable> usable;
  for (size_t j = 0; j < fits.size(); ++j) {
    const Lifted& own = fits[j];
    Member member = choice.members[j];
    if (own.fit.op.rows() == 0 || !own.basis.usable) continue;
    Vector divisor = divisors(own.basis.values, member.options.unstable, own.radius);
    const double added = block.error_of_bound(own, divisor, member.options.block_average);
    member.weight = 1 / (1 / member.weight + added);
    if (member.weight > 0) usable.push_back({member, &own, std::move(divisor)});
  }
  std::stable_sort(usable.begin(), usable.end(), [](const Usable& a, const Usable& b) {
    return a.member.weight > b.member.weight;
  });
  return usable;
}

// Stores the mean of the members' operators, of which there is a fit each. Those that are not
// usable, or for which there is no room, are left out; false where no other is left.
bool store_mean(const Block& block, Choice& choice, const std::vector<Lifted>& fits,
                const OperatorArrays& out, int64_t i) {
  const Vector* sigma = nullptr;
  std::vector<Member> taken;
  std::unique_ptr<Mixture> mixture;
  for (const auto& [member, own, divisor] : usable_members(block, choice, fits)) {
    const int64_t a = member.options.block_average;
    if (!mixture) mixture = std::make_unique<Mixture>(own->lift.rows());
    if (!mixture->add(own->basis, divisor, own->fit.start, own->lift, block.start(a), a,
                      member.weight, out.capacity[i]))
      continue;
    if (taken.empty()) sigma = &own->fit.sigma;
    taken.push_back(member);
  }
  if (taken.empty()) return false;
  for (Member& member : taken) member.weight /= mixture->weight();
  choice.members = std::move(taken);
  store_mixture(*mixture, *sigma, out, i);
  FitOptions mean = choice.members[0].options;
  mean.block_average = 1;  // whatever it is of: in recorded intervals
  note_options(mean, out, i);
  note_choice(choice, out, i);
  return true;
}

// Stores the operator of the heaviest member alone.
void store_one(const Block& block, Choice& choice, const OperatorArrays& out, int64_t i) {
  choice.members.resize(1);
  Member& member = choice.members[0];
  member.weight = 1;
  const FitOptions& own = member.options;
  const Matrix h = embed(block.observables(member), own.delays);
  if (own.chosen == 0 && own.rank_rule == RankRule::hindcast) {
    member.rank = hindcast(h, block.shape, own, member.rank, choice.error, choice.trusted);
    choice.trusted *= static_cast<double>(own.block_average);
  }
  note_options(own, out, i);
  note_choice(choice, out, i);
  Reduced fit = reduce(h, block.shape, own, member.rank);
  if (own.block_average > 1) {
    const Vector start = block.start(own.block_average);
    Eigen::Map<Vector>(out.origins + out.origin_offsets[i], start.size()) = start;
  }
  Matrix lift = block.lift(fit, member);
  FitOptions stored = own;
  if (own.unstable == Unstable::slow) {
    if (fit.op.rows() > 0)
      move_to_unit_disc(fit.op, lift, own.unstable, slow_growth(own.unstable, h.cols()));
    stored.unstable = Unstable::keep;
  }
  store_block(fit, lift, stored, out, i);
}

// Fits of the members of all means, those to the same observables together.
std::vector<std::vector<Lifted>> fit_members(const std::vector<Block>& blocks,
                                             const std::vector<Choice>& choices) {
  struct Job {
    size_t block, member;
  };
  std::vector<Job> jobs;
  std::vector<std::vector<Lifted>> fits(blocks.size());
  for (size_t b = 0; b < blocks.size(); ++b) {
    const std::vector<Member>& members = choices[b].members;
    fits[b].resize(members.size() > 1 ? members.size() : 0);
    for (size_t j = 0; j < fits[b].size(); ++j) jobs.push_back({b, j});
  }
  const auto member_of = [&](int64_t job) -> const Member& {
    return choices[jobs[job].block].members[jobs[job].member];
  };
  const auto count = static_cast<int64_t>(jobs.size());
  const Groups groups = group_by(count, std::max<int64_t>(count, 1), [&](int64_t job) {
    const Member& own = member_of(job);
    return std::make_tuple(own.options.delays, own.options.block_average, own.snapshots);
  });
  std::vector<const Matrix*> operators;
  std::vector<Lifted*> fitted;
  for (int64_t g = 0; g < groups.count(); ++g) {
    std::vector<Observed> observed;
    std::vector<BlockShape> shapes;
    std::vector<int64_t> limits;
    const int64_t first = groups.first[g], end = groups.first[g + 1];
    for (int64_t j = first; j < end; ++j) {
      const int64_t job = groups.order[j];
      const Block& block = blocks[jobs[job].block];
      observed.push_back({block.observables(member_of(job)), Matrix()});
      shapes.push_back(block.shape);
      limits.push_back(member_of(job).rank);
    }
    const FitOptions& options = member_of(groups.order[first]).options;
    std::vector<Reduced> own = reduce_together(observed, shapes, options, limits);
    for (int64_t j = first; j < end; ++j) {
      const int64_t job = groups.order[j];
      Lifted& lifted = fits[jobs[job].block][jobs[job].member];
      lifted.fit = std::move(own[j - first]);
      if (lifted.fit.op.rows() == 0) continue;
      lifted.lift = blocks[jobs[job].block].lift(lifted.fit, member_of(job));
      lifted.radius =
          slow_growth(options.unstable, observed[j - first].o.cols() - options.delays + 1);
      operators.push_back(&lifted.fit.op);
      fitted.push_back(&lifted);
    }
  }
  std::vector<Eigenbasis> bases = eigenbases(operators);
  for (size_t i = 0; i < fitted.size(); ++i) fitted[i]->basis = std::move(bases[i]);
  return fits;
}

void fit_some(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t first,
              int64_t end, BlockForm form, const double* coordinates, const FitOptions& options,
              const OperatorArrays& out) {
  std::vector<Block> finite;
  std::vector<int64_t> at;
  for (int64_t i = first; i < end; ++i) {
    begin_block(options, out, i);
    const double* own = form == BlockForm::dual ? coordinates + i * s.m * s.m : nullptr;
    Block block(s, table, blocks[i], form, own, options);
    if (!block.motion.steps.allFinite() || !block.motion.states.allFinite()) {
      out.status[i] = static_cast<int32_t>(BlockStatus::non_finite);
      continue;
    }
    finite.push_back(std::move(block));
    at.push_back(i);
  }
  std::vector<Choice> choices;
  if (options.chosen != 0) {
    std::vector<Subject> subjects;
    for (size_t b = 0; b < at.size(); ++b)
      subjects.push_back({&finite[b].motion, finite[b].shape, out.capacity[at[b]]});
    choices = choose(subjects, options);
  } else {
    for (const int64_t i : at)
      choices.push_back({{{options, s.m, out.capacity[i], 1}}, kNaN, kNaN});
  }
  const std::vector<std::vector<Lifted>> fits = fit_members(finite, choices);
  for (size_t b = 0; b < at.size(); ++b)
    if (fits[b].empty() || !store_mean(finite[b], choices[b], fits[b], out, at[b]))
      store_one(finite[b], choices[b], out, at[b]);
}

}  // namespace

void operator_fit(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                  int64_t count, BlockForm form, const double* coordinates,
                  const FitOptions& options, const OperatorArrays& out, int threads) {
  int64_t together = 1, entries = 1;
  if (options.chosen != 0) {
    for (int64_t i = 0; i < count; ++i)
      entries = std::max(entries, s.m * std::min(s.m, table.block_size(blocks[i])));
    together = std::clamp<int64_t>(kMostEntries / entries, 1, kTogether);
  }
  parallel_for((count + together - 1) / together, threads, [&](int64_t i) {
    fit_some(s, table, blocks, i * together, std::min(count, (i + 1) * together), form, coordinates,
             options, out);
  });
}

}  // namespace koopfast
