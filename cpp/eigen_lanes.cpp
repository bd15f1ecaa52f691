// SPDX-License-Identifier: BSD-3-Clause
#include "eigen_lanes.h"

#include <algorithm>
#include <complex>

#include "lane_groups.h"
#include "lane_kernels.h"
#include "math/general_eigen.h"
#include "rank_hindcast.h"

namespace koopfast {
namespace {

// Beyond this order one at a time does as well.
constexpr int64_t kMostOrder = 32;

KF_INLINE Pack* packs(double* lanes) { return reinterpret_cast<Pack*>(lanes); }
KF_INLINE const Pack* packs(const double* lanes) { return reinterpret_cast<const Pack*>(lanes); }

KF_MULTIARCH unsigned lane_general_eigen(double* a, int n, double* values, double* vectors,
                                         double* inverse, double* condition, double* work) {
  const int area = n * n;
  const PackMask converged = general_eigen(
      packs(a), n, {packs(values), packs(values) + n}, {packs(vectors), packs(vectors) + area},
      {packs(inverse), packs(inverse) + area}, packs(condition), packs(work));
  unsigned out = 0;
  for (int l = 0; l < kLanes; ++l) out |= converged[l] != 0 ? 1u << l : 0u;
  return out;
}

// V diag(factors) V^-1 of conjugate pairs, which is real.
KF_MULTIARCH void lane_recompose(const double* vectors, const double* inverse,
                                 const double* factors, int n, double* out) {
  const int area = n * n;
  const Pack *re = packs(vectors), *im = re + area, *inverse_re = packs(inverse);
  const Pack *inverse_im = inverse_re + area, *own = packs(factors);
  for (int i = 0; i < n; ++i) {
    Pack* row = packs(out) + i * n;
    for (int j = 0; j < n; ++j) row[j] = Pack{};
    for (int l = 0; l < n; ++l) {
      const Pack a = re[i * n + l] * own[l], b = im[i * n + l] * own[l];
      for (int j = 0; j < n; ++j) row[j] += a * inverse_re[l * n + j] - b * inverse_im[l * n + j];
    }
  }
}

// Up to eight operators of one order, and their eigenbases.
class LaneBases {
  int n_;

 public:
  // Those at `first` to `end` of `order`.
  LaneBases(const std::vector<const Matrix*>& all, const std::vector<int64_t>& order, int64_t first,
            int64_t end)
      : n_(static_cast<int>(all[order[first]]->rows())),
        op(n_ * n_),
        values_(2 * n_),
        vectors_(2 * n_ * n_),
        inverse_(2 * n_ * n_),
        condition_(1) {
    for (int l = 0; l < kLaneCount; ++l) {  // lanes to spare repeat the first
      const Matrix& own = *all[order[first + l < end ? first + l : first]];
      for (int j = 0; j < n_; ++j)
        for (int i = 0; i < n_; ++i) op.at(i * n_ + j, l) = own(i, j);
    }
  }

  unsigned stable() {
    LaneArray work(2 * n_ * n_);
    return lane_certainly_stable(op.data(), n_, work.data());
  }

  // The lanes in which they have been found.
  unsigned solve() {
    LaneArray a(n_ * n_), work(6 * n_ * n_);
    std::copy_n(op.data(), n_ * n_ * kLaneCount, a.data());
    return lane_general_eigen(a.data(), n_, values_.data(), vectors_.data(), inverse_.data(),
                              condition_.data(), work.data());
  }

  bool usable(int l) const { return condition_.at(0, l) < kEigenbasisConditionLimit; }

  ComplexVector values(int l) const {
    ComplexVector own(n_);
    for (int i = 0; i < n_; ++i) own(i) = {values_.at(i, l), values_.at(n_ + i, l)};
    return own;
  }

  Eigenbasis basis(int l) const {
    Eigenbasis own{values(l), ComplexMatrix(n_, n_), ComplexMatrix(n_, n_), usable(l)};
    const int area = n_ * n_;
    for (int j = 0; j < n_; ++j)
      for (int i = 0; i < n_; ++i) {
        const int at = i * n_ + j;
        own.vectors(i, j) = {vectors_.at(at, l), vectors_.at(area + at, l)};
        own.inverse(i, j) = {inverse_.at(at, l), inverse_.at(area + at, l)};
      }
    return own;
  }

  // P - I of move_to_unit_disc, from changes (n, lanes).
  void recompose(const LaneArray& changes, LaneArray& out) const {
    lane_recompose(vectors_.data(), inverse_.data(), changes.data(), n_, out.data());
  }

  LaneArray op;

 private:
  LaneArray values_, vectors_, inverse_, condition_;
};

Groups groups_of(const std::vector<const Matrix*>& operators) {
  return group_by(static_cast<int64_t>(operators.size()), kLaneCount,
                  [&](int64_t i) { return operators[i]->rows(); });
}

Matrix matrix_of(const LaneArray& a, int64_t n, int l) {
  Matrix own(n, n);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < n; ++i) own(i, j) = a.at(i * n + j, l);
  return own;
}

// Moves those that are not stable, of one order.
void move_lanes(LaneBases& bases, const std::vector<Bounded>& operators, const int64_t* at,
                int64_t count, Unstable unstable, double radius) {
  const int64_t n = operators[at[0]].op->rows();
  const unsigned solved = bases.solve();
  LaneArray changes(n), p(n * n), product(n * n);
  changes.clear();
  unsigned moved = 0;
  for (int l = 0; l < count; ++l) {
    const auto& [op, lift] = operators[at[l]];
    if ((solved >> l & 1u) == 0) {
      move_to_unit_disc(*op, *lift, unstable, radius);
      continue;
    }
    const Vector divisor = divisors(bases.values(l), unstable, radius);
    const double largest = divisor.maxCoeff();
    if (!(largest > 1)) continue;
    if (!bases.usable(l)) {
      *op /= largest;
      *lift /= largest;
      continue;
    }
    moved |= 1u << l;
    for (int64_t j = 0; j < n; ++j) changes.at(j, l) = 1 / divisor(j) - 1;
  }
  if (moved == 0) return;
  const int order = static_cast<int>(n);
  bases.recompose(changes, p);
  lane_multiply(bases.op.data(), p.data(), order, order, order, product.data());
  for (int l = 0; l < count; ++l) {
    if ((moved >> l & 1u) == 0) continue;
    *operators[at[l]].op += matrix_of(product, n, l);
    Matrix& lift = *operators[at[l]].lift;
    lift += lift * matrix_of(p, n, l);
  }
}

}  // namespace

std::vector<Eigenbasis> eigenbases(const std::vector<const Matrix*>& operators) {
  std::vector<Eigenbasis> found(operators.size());
  const Groups groups = groups_of(operators);
  for (int64_t g = 0; g < groups.count(); ++g) {
    const int64_t first = groups.first[g], end = groups.first[g + 1];
    const bool lanes = operators[groups.order[first]]->rows() <= kMostOrder;
    unsigned solved = 0;
    if (lanes) {
      LaneBases bases(operators, groups.order, first, end);
      solved = bases.solve();
      for (int64_t j = first; j < end; ++j) found[groups.order[j]] = bases.basis(j - first);
    }
    for (int64_t j = first; j < end; ++j)
      if ((solved >> (j - first) & 1u) == 0)
        found[groups.order[j]] = eigenbasis(*operators[groups.order[j]]);
  }
  return found;
}

void move_all_to_unit_disc(const std::vector<Bounded>& operators, Unstable unstable,
                           double radius) {
  if (unstable == Unstable::keep) return;
  std::vector<const Matrix*> all;
  for (const Bounded& own : operators) all.push_back(own.op);
  std::vector<int64_t> open;
  const Groups groups = groups_of(all);
  for (int64_t g = 0; g < groups.count(); ++g) {
    const int64_t first = groups.first[g], end = groups.first[g + 1];
    const int64_t n = all[groups.order[first]]->rows();
    if (n == 0) continue;
    const unsigned stable =
        n <= kMostOrder ? LaneBases(all, groups.order, first, end).stable() : 0u;
    for (int64_t j = first; j < end; ++j) {
      const int64_t i = groups.order[j];
      if (n > kMostOrder && !certainly_stable(*all[i]))
        move_to_unit_disc(*operators[i].op, *operators[i].lift, unstable, radius);
      else if (n <= kMostOrder && (stable >> (j - first) & 1u) == 0)
        open.push_back(i);
    }
  }
  // Those that are left are packed anew: still in groups of one order.
  for (size_t first = 0, end = 0; first < open.size(); first = end) {
    for (end = first; end < open.size() && end < first + kLaneCount &&
                      all[open[end]]->rows() == all[open[first]]->rows();)
      ++end;
    LaneBases bases(all, open, first, end);
    move_lanes(bases, operators, open.data() + first, end - first, unstable, radius);
  }
}

}  // namespace koopfast
