// SPDX-License-Identifier: BSD-3-Clause
#include "eigen_fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "math/rank.h"
#include "math/small_matrix.h"
#include "operator_spectrum.h"
#include "operator_store.h"
#include "reduced_operator.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Eight blocks side by side, or one alone by Eigen's routines: first the ranks, from the
// eigenvalues of G, then the operators, from as many of its eigenvectors.
class EigenFit {
 public:
  EigenFit(const LaneForms& forms, const int64_t* results, const FitRequest& request)
      : forms_(forms),
        results_(results),
        count_(forms.count),
        lanes_(forms.lanes),
        n_(forms.order),
        pairs_(request.pairs),
        m_(request.m),
        options_(request.options),
        out_(request.out),
        columns_(std::min<int64_t>(n_, pairs_)),
        sigmas_(count_ * columns_),
        rank_(lanes_, 0) {}

  // Status, singular values and rank of these lanes, from eigenvalues (n,), largest first. The
  // largest rank.
  int choose(unsigned lanes, const LaneArray& values) {
    for (int l = 0; l < count_; ++l)
      if ((lanes >> l & 1u) != 0) choose_rank(l, values);
    return static_cast<int>(*std::max_element(rank_.begin(), rank_.end()));
  }

  // How many eigenvectors each lane keeps: 0 where it is not, or not here, to be fitted.
  void wanted(LaneArray& out) const {
    for (int l = 0; l < lanes_; ++l) out.at(0, l) = static_cast<double>(rank_[l]);
  }

  // Leaves these lanes to another.
  void drop(unsigned lanes) {
    for (int l = 0; l < count_; ++l)
      if ((lanes >> l & 1u) != 0) rank_[l] = 0;
  }

  void multiply(const LaneArray& a, const LaneArray& b, int rows, int inner, int columns,
                LaneArray& out) {
    if (lanes_ > 1) return lane_multiply(a.data(), b.data(), rows, inner, columns, out.data());
    const Eigen::Map<const RowMajor> left(a.data(), rows, inner), right(b.data(), inner, columns);
    Eigen::Map<RowMajor>(out.data(), rows, columns).noalias() = left * right;
  }

  void multiply_transposed(const LaneArray& a, const LaneArray& b, int rows, int inner, int columns,
                           LaneArray& out) {
    if (lanes_ > 1)
      return lane_multiply_transposed(a.data(), b.data(), rows, inner, columns, out.data());
    const Eigen::Map<const RowMajor> left(a.data(), inner, rows), right(b.data(), inner, columns);
    Eigen::Map<RowMajor>(out.data(), rows, columns).noalias() = left.transpose() * right;
  }

  void divide(const LaneArray& b, const LaneArray& d, const LaneArray& inverse, int rows, int k,
              LaneArray& out, LaneArray& work) {
    if (lanes_ > 1)
      return lane_divide_nearly_diagonal(b.data(), d.data(), inverse.data(), rows, k, out.data(),
                                         work.data());
    divide_nearly_diagonal(b.data(), d.data(), inverse.data(), rows, k, out.data(), work.data());
  }

  void choose_rank(int l, const LaneArray& values) {
    const int64_t at = results_[l], capacity = out_.capacity[at];
    double* shown = out_.singular_values + out_.vector_offsets[at];
    begin_block(options_, out_, at);
    if (!forms_.is_finite(l)) {
      out_.status[at] = static_cast<int32_t>(BlockStatus::non_finite);
      return;
    }
    // F has no more singular values than columns.
    double* own = sigmas_.data() + l * columns_;
    for (int64_t i = 0; i < columns_; ++i)
      own[i] = std::sqrt(std::max(0.0, values.at(i, l)) / forms_.scale[l]);
    std::copy_n(own, std::min<int64_t>(capacity, columns_), shown);
    rank_[l] =
        chosen_rank(own, columns_, forms_.weights[l] * options_.delays, pairs_, options_, capacity);
    out_.rank[at] = rank_[l];
    out_.status[at] = static_cast<int32_t>(rank_[l] > 0 ? BlockStatus::ok : BlockStatus::still);
  }

  double sigma(int l, int64_t i) const { return sigmas_[l * columns_ + i]; }

 public:
  // Operators, lifts and starts from the kept eigenvectors W (n, k), zeros in what a lane does not
  // keep. An eigensolver leaves errors of
  // eps s_1^2, far above the rounding of G in what is small of it: quotients are formed with
  // D = W^T G W, its diagonal to begin with.
  void project(const LaneArray& w, int k) {
    LaneArray inverse(k, lanes_), image(n_ * k, lanes_), divisor(k * k, lanes_);
    LaneArray work(n_ * k, lanes_);
    inverse.clear();
    multiply(forms_.square, w, n_, n_, k, image);
    multiply_transposed(w, image, k, n_, k, divisor);
    for (int l = 0; l < count_; ++l)
      for (int64_t j = 0; j < rank_[l]; ++j) {
        // The ridge of a dual fit is in its filter.
        if (!dual()) divisor.at(j * k + j, l) += ridge(l) * forms_.scale[l];
        inverse.at(j, l) = 1 / divisor.at(j * k + j, l);
      }
    multiply(forms_.crossed, w, n_, n_, k, image);
    LaneArray projected(k * k, lanes_), start(k, lanes_), lift(n_ * k, lanes_);
    if (options_.estimator == Estimator::symmetric) {
      multiply_transposed(w, image, k, n_, k, projected);
      multiply_transposed(w, forms_.latest, k, n_, 1, start);
      for (int l = 0; l < count_; ++l) procrustes(l, k, w, projected, start, lift);
    } else if (dual()) {
      // A = S D^-1 B filter, z = S D^-1 V^T b with B = V^T C V: D^-1 B by its transpose.
      LaneArray own(k * k, lanes_), transposed(k * k, lanes_), latest(k, lanes_);
      multiply_transposed(image, w, k, n_, k, transposed);
      divide(transposed, divisor, inverse, k, k, own, work);
      multiply_transposed(w, forms_.latest, k, n_, 1, latest);
      divide(latest, divisor, inverse, 1, k, start, work);
      for (int l = 0; l < count_; ++l) filter_dual(l, k, w, own, projected, start, lift);
    } else {
      // Phi = C Q D^-1, A = Q^T Phi.
      divide(image, divisor, inverse, n_, k, lift, work);
      multiply_transposed(w, lift, k, n_, k, projected);
      multiply_transposed(w, forms_.latest, k, n_, 1, start);
    }
    store(k, projected, start, lift);
    if (lanes_ == 1) return bound_spectrum(out_, results_[0], lift_rows(0), options_.unstable);
    const bool keep = options_.unstable == Unstable::keep;
    LaneArray powers(keep ? 0 : 2 * k * k);
    const unsigned stable = keep ? ~0u : lane_certainly_stable(projected.data(), k, powers.data());
    for (int l = 0; l < count_; ++l) {
      if (rank_[l] == 0) continue;
      if (stable >> l & 1u)
        out_.spectrum[results_[l]] = static_cast<int32_t>(Spectrum::pending);
      else
        move_spectrum(out_, results_[l], lift_rows(l), options_.unstable);
    }
  }

 private:
  int64_t lift_rows(int l) const { return dual() ? m_ : forms_.weights[l]; }

  bool dual() const { return forms_.dual(); }

  double ridge(int l) const { return options_.ridge * sigma(l, 0) * sigma(l, 0); }

  // Symmetric Procrustes as in reduced_operator.cpp, from B = W^T C W; the image Q A, or X of F X.
  void procrustes(int l, int k, const LaneArray& w, LaneArray& projected, LaneArray& start,
                  LaneArray& lift) {
    const int64_t rank = rank_[l];
    Matrix op(rank, rank);
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        const double own = projected.at(i * k + j, l) / forms_.scale[l], si = sigma(l, i);
        const double other = projected.at(j * k + i, l) / forms_.scale[l], sj = sigma(l, j);
        const double both = dual() ? other * (si / sj) + own * (sj / si) : other + own;
        op(i, j) = both / (si * si + sj * sj + 2 * ridge(l));
      }
    for (int64_t i = 0; i < rank; ++i) {
      for (int64_t j = 0; j < rank; ++j) projected.at(i * k + j, l) = op(i, j);
      if (dual()) start.at(i, l) /= sigma(l, i) * forms_.scale[l];
    }
    for (int i = 0; i < n_; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        double sum = 0;
        for (int64_t r = 0; r < rank; ++r)
          sum += w.at(i * k + r, l) * (dual() ? op(r, j) / sigma(l, r) : op(r, j));
        lift.at(i * k + j, l) = sum;
      }
  }

  // A, z and X = V filter, which is 1 / sigma without a ridge; `own` is (D^-1 B)^T.
  void filter_dual(int l, int k, const LaneArray& w, const LaneArray& own, LaneArray& projected,
                   LaneArray& start, LaneArray& lift) {
    for (int64_t j = 0; j < rank_[l]; ++j) {
      // In this order no square underflows.
      const double largest = sigma(l, 0), here = sigma(l, j);
      const double filter = 1 / (here + options_.ridge * largest * (largest / here));
      for (int64_t i = 0; i < rank_[l]; ++i)
        projected.at(i * k + j, l) = own.at(j * k + i, l) * (sigma(l, i) * filter);
      for (int i = 0; i < n_; ++i) lift.at(i * k + j, l) = w.at(i * k + j, l) * filter;
      start.at(j, l) *= here;
    }
  }

  // Operators, starts and lifts, to where they belong.
  void store(int k, const LaneArray& projected, const LaneArray& start, const LaneArray& lift) {
    double *ops[kLaneCount] = {}, *starts[kLaneCount] = {}, *lifts[kLaneCount] = {};
    for (int l = 0; l < count_; ++l) {
      const int64_t at = results_[l];
      ops[l] = out_.operators + out_.matrix_offsets[at];
      starts[l] = out_.start + out_.vector_offsets[at];
      lifts[l] = out_.lifts + out_.lift_offsets[at];
    }
    scatter(projected, k, k, true, ops);
    scatter(start, 1, k, false, starts);
    if (!dual()) return scatter(lift, forms_.weights[0], k, false, lifts);
    // Column i of F' holds the observable i + q on top, that of F the one before.
    const int64_t newest = options_.delays - (options_.estimator == Estimator::symmetric ? 1 : 0);
    LaneArray spread(m_ * k, lanes_);
    spread.clear();
    const int64_t row = static_cast<int64_t>(k) * lanes_;
    double* to = spread.data() + newest * row;
    for (int64_t i = 0; i < n_ * row; ++i) {
      if (options_.increments) to[i + row] += lift.data()[i];
      to[i] += options_.increments ? -lift.data()[i] : lift.data()[i];
    }
    scatter(spread, m_, k, false, lifts);
  }

  // A lane's (rows, rank) of (rows, k), or (rank, rank) of (k, k), to outs[l].
  void scatter(const LaneArray& a, int64_t rows, int k, bool square, double* const* outs) {
    double* whole[kLaneCount] = {};
    for (int l = 0; l < count_; ++l) {
      if (lanes_ > 1 && rank_[l] == k) {
        whole[l] = outs[l];
        continue;
      }
      const int64_t rank = rank_[l], own = square ? rank : rows;
      for (int64_t i = 0; i < own; ++i)
        for (int64_t j = 0; j < rank; ++j) outs[l][i * rank + j] = a.at(i * k + j, l);
    }
    if (lanes_ > 1) lane_scatter(a.data(), rows * k, whole);
  }

  const LaneForms& forms_;
  const int64_t* results_;
  int count_, lanes_, n_;
  int64_t pairs_, m_;
  const FitOptions& options_;
  const OperatorArrays& out_;
  int64_t columns_;             // singular values of F
  std::vector<double> sigmas_;  // (count, columns), largest first
  std::vector<int64_t> rank_;   // (lanes,)
};

// Lanes that have not converged are fitted alone.
void fit_alone(const FormsToFit& group, unsigned lanes, const FitRequest& request) {
  const LaneForms& forms = *group.forms;
  for (int l = 0; l < forms.count; ++l)
    if (lanes >> l & 1u) fit_by_eigenvectors(LaneForms(forms, l), group.results + l, request);
}

}  // namespace

void fit_by_eigenvectors(const FormsToFit& low, const FormsToFit& high, const FitRequest& request) {
  const FormsToFit groups[] = {low, high};
  if (low.done == low.forms->all() && high.done == high.forms->all()) return;
  const int n = low.forms->order;
  LaneArray values[] = {LaneArray(n), LaneArray(n)}, state(lane_eigen_state(n));
  const unsigned converged = lane_eigenvalues(low.forms->square.data(), high.forms->square.data(),
                                              n, values[0].data(), values[1].data(), state.data());
  EigenFit fits[] = {{*low.forms, low.results, request}, {*high.forms, high.results, request}};
  unsigned failed[2];
  int ranks[2];
  LaneArray wanted[] = {LaneArray(1), LaneArray(1)};
  for (int g = 0; g < 2; ++g) {
    const LaneForms& forms = *groups[g].forms;
    const unsigned open = forms.all() & ~groups[g].done;
    failed[g] = open & forms.finite & ~(converged >> g * kLaneCount);
    ranks[g] = fits[g].choose(open & ~failed[g], values[g]);
    fits[g].wanted(wanted[g]);
  }
  const int k = std::max(ranks[0], ranks[1]);
  if (k > 0) {
    LaneArray vectors[] = {LaneArray(n * k), LaneArray(n * k)};
    LaneArray work(lane_leading_workspace(n, k));
    const unsigned found =
        lane_leading_eigenvectors(state.data(), n, k, wanted[0].data(), wanted[1].data(),
                                  vectors[0].data(), vectors[1].data(), work.data());
    for (int g = 0; g < 2; ++g) {
      const LaneForms& forms = *groups[g].forms;
      const unsigned late =
          forms.all() & ~groups[g].done & forms.finite & ~(found >> g * kLaneCount);
      fits[g].drop(late);
      failed[g] |= late;
      if (ranks[g] > 0) fits[g].project(vectors[g], k);
    }
  }
  for (int g = 0; g < 2; ++g) fit_alone(groups[g], failed[g], request);
}

void fit_by_eigenvectors(const LaneForms& alone, const int64_t* results,
                         const FitRequest& request) {
  const int n = alone.order;
  Vector values;
  Matrix vectors;
  symmetric_eigen(Eigen::Map<const Matrix>(alone.square.data(), n, n), values, vectors);
  LaneArray own(n, 1);
  std::copy_n(values.data(), n, own.data());
  EigenFit fit(alone, results, request);
  const int k = fit.choose(1, own);
  if (k == 0) return;
  LaneArray kept(n * k, 1);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < k; ++j) kept.at(i * k + j, 0) = vectors(i, j);
  fit.project(kept, k);
}

}  // namespace koopfast
