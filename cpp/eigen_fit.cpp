// SPDX-License-Identifier: BSD-3-Clause
#include "eigen_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "math/small_matrix.h"
#include "operator_spectrum.h"
#include "operator_store.h"
#include "reduced_operator.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// One block's part of a group: the directions that it keeps, largest first.
struct Kept {
  std::vector<int64_t> order;  // which eigenvectors
  Vector sigma;                // all singular values of F
  int64_t rank = 0;            // 0 of a lane that is not, or not here, to be fitted
};

// Eigenvalues of G, and eigenvectors by rows.
struct Directions {
  explicit Directions(const LaneForms& forms)
      : values(forms.order, forms.lanes), vectors(forms.order * forms.order, forms.lanes) {}

  LaneArray values, vectors;
};

// Eight blocks side by side, or one alone by Eigen's routines.
class EigenFit {
 public:
  EigenFit(const LaneForms& forms, const int64_t* results, Directions& directions,
           const FitRequest& request)
      : forms_(forms),
        results_(results),
        count_(forms.count),
        lanes_(forms.lanes),
        n_(forms.order),
        pairs_(request.pairs),
        m_(request.m),
        options_(request.options),
        out_(request.out),
        values_(directions.values),
        vectors_(directions.vectors),
        kept_(count_) {}

  // Of these lanes.
  void run(unsigned lanes) {
    int most = 0;
    for (int l = 0; l < count_; ++l) {
      if ((lanes >> l & 1u) == 0) continue;
      choose(l);
      most = std::max(most, static_cast<int>(kept_[l].rank));
    }
    if (most > 0) project(most);
  }

 private:
  void multiply(const LaneArray& a, const LaneArray& b, int rows, int inner, int columns,
                LaneArray& out) {
    if (lanes_ > 1) return lane_multiply(a.data(), b.data(), rows, inner, columns, out.data());
    const Eigen::Map<const RowMajor> left(a.data(), rows, inner), right(b.data(), inner, columns);
    Eigen::Map<RowMajor>(out.data(), rows, columns).noalias() = left * right;
  }

  void divide(LaneArray& b, LaneArray& d, LaneArray& inverse, int rows, int k, LaneArray& out,
              LaneArray& work) {
    if (lanes_ > 1)
      return lane_divide_nearly_diagonal(b.data(), d.data(), inverse.data(), rows, k, out.data(),
                                         work.data());
    divide_nearly_diagonal(b.data(), d.data(), inverse.data(), rows, k, out.data(), work.data());
  }

  void transpose(LaneArray& a, int k, LaneArray& out) {
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < k; ++j)
        for (int l = 0; l < count_; ++l) out.at(j * k + i, l) = a.at(i * k + j, l);
  }

  // Status, singular values and rank of lane l.
  void choose(int l) {
    Kept& kept = kept_[l];
    const int64_t at = results_[l], capacity = out_.capacity[at];
    double* shown = out_.singular_values + out_.vector_offsets[at];
    begin_block(options_, out_, at);
    if (!forms_.is_finite(l)) {
      out_.status[at] = static_cast<int32_t>(BlockStatus::non_finite);
      return;
    }
    kept.order.resize(n_);
    std::iota(kept.order.begin(), kept.order.end(), 0);
    std::stable_sort(kept.order.begin(), kept.order.end(),
                     [&](int64_t a, int64_t b) { return values_.at(a, l) > values_.at(b, l); });
    // F has no more singular values than columns.
    kept.sigma.resize(std::min<int64_t>(n_, pairs_));
    for (int64_t i = 0; i < kept.sigma.size(); ++i)
      kept.sigma(i) = std::sqrt(std::max(0.0, values_.at(kept.order[i], l)) / forms_.scale[l]);
    std::copy_n(kept.sigma.data(), std::min<int64_t>(capacity, kept.sigma.size()), shown);
    kept.rank = chosen_rank(kept.sigma, forms_.forms[l].weights * options_.delays, pairs_, options_,
                            capacity);
    out_.rank[at] = kept.rank;
    out_.status[at] = static_cast<int32_t>(kept.rank > 0 ? BlockStatus::ok : BlockStatus::still);
  }

  // Operators, lifts and starts from the kept eigenvectors W. An eigensolver leaves errors of
  // eps s_1^2, far above the rounding of G in what is small of it: quotients are formed with
  // D = W^T G W, its diagonal to begin with.
  void project(int k) {
    LaneArray w(n_ * k, lanes_), w_transposed(k * n_, lanes_), inverse(k, lanes_);
    LaneArray image(n_ * k, lanes_), divisor(k * k, lanes_), work(n_ * k, lanes_);
    // What a lane does not keep is zero.
    for (LaneArray* array : {&w, &w_transposed, &inverse}) array->clear();
    for (int l = 0; l < count_; ++l)
      for (int64_t j = 0; j < kept_[l].rank; ++j)
        for (int i = 0; i < n_; ++i)
          w.at(i * k + j, l) = w_transposed.at(j * n_ + i, l) =
              vectors_.at(kept_[l].order[j] * n_ + i, l);
    multiply(forms_.square, w, n_, n_, k, image);
    multiply(w_transposed, image, k, n_, k, divisor);
    for (int l = 0; l < count_; ++l)
      for (int64_t j = 0; j < kept_[l].rank; ++j) {
        // The ridge of a dual fit is in its filter.
        if (!dual()) divisor.at(j * k + j, l) += ridge(l) * forms_.scale[l];
        inverse.at(j, l) = 1 / divisor.at(j * k + j, l);
      }
    multiply(forms_.crossed, w, n_, n_, k, image);
    LaneArray projected(k * k, lanes_), start(k, lanes_), lift(n_ * k, lanes_);
    if (options_.estimator == Estimator::symmetric) {
      multiply(w_transposed, image, k, n_, k, projected);
      multiply(w_transposed, forms_.latest, k, n_, 1, start);
      for (int l = 0; l < count_; ++l) procrustes(l, k, w, projected, start, lift);
    } else if (dual()) {
      // A = S D^-1 B filter, z = S D^-1 V^T b with B = V^T C V: D^-1 B by its transpose.
      LaneArray own(k * k, lanes_), transposed(k * k, lanes_), latest(k, lanes_);
      multiply(w_transposed, image, k, n_, k, own);
      transpose(own, k, transposed);
      divide(transposed, divisor, inverse, k, k, own, work);
      transpose(own, k, projected);
      multiply(w_transposed, forms_.latest, k, n_, 1, latest);
      divide(latest, divisor, inverse, 1, k, start, work);
      for (int l = 0; l < count_; ++l) filter_dual(l, k, w, projected, start, lift);
    } else {
      // Phi = C Q D^-1, A = Q^T Phi.
      divide(image, divisor, inverse, n_, k, lift, work);
      multiply(w_transposed, lift, k, n_, k, projected);
      multiply(w_transposed, forms_.latest, k, n_, 1, start);
    }
    for (int l = 0; l < count_; ++l)
      if (kept_[l].rank > 0) store(l, k, projected, start, lift);
    if (lanes_ == 1) return bound_spectrum(out_, results_[0], lift_rows(0), options_.unstable);
    const bool keep = options_.unstable == Unstable::keep;
    LaneArray powers(keep ? 0 : 2 * k * k);
    const unsigned stable = keep ? ~0u : lane_certainly_stable(projected.data(), k, powers.data());
    for (int l = 0; l < count_; ++l) {
      if (kept_[l].rank == 0) continue;
      if (stable >> l & 1u)
        out_.spectrum[results_[l]] = static_cast<int32_t>(Spectrum::pending);
      else
        move_spectrum(out_, results_[l], lift_rows(l), options_.unstable);
    }
  }

  int64_t lift_rows(int l) const {
    return forms_.forms[l].form == BlockForm::dual ? m_ : forms_.forms[l].weights;
  }

  bool dual() const { return forms_.dual(); }

  double ridge(int l) const { return options_.ridge * kept_[l].sigma(0) * kept_[l].sigma(0); }

  // Symmetric Procrustes as in reduced_operator.cpp, from B = W^T C W; the image Q A, or X of F X.
  void procrustes(int l, int k, LaneArray& w, LaneArray& projected, LaneArray& start,
                  LaneArray& lift) {
    const Kept& kept = kept_[l];
    const int64_t rank = kept.rank;
    Matrix op(rank, rank);
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        const double own = projected.at(i * k + j, l) / forms_.scale[l], si = kept.sigma(i);
        const double other = projected.at(j * k + i, l) / forms_.scale[l], sj = kept.sigma(j);
        const double both = dual() ? other * (si / sj) + own * (sj / si) : other + own;
        op(i, j) = both / (si * si + sj * sj + 2 * ridge(l));
      }
    for (int64_t i = 0; i < rank; ++i) {
      for (int64_t j = 0; j < rank; ++j) projected.at(i * k + j, l) = op(i, j);
      if (dual()) start.at(i, l) /= kept.sigma(i) * forms_.scale[l];
    }
    for (int i = 0; i < n_; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        double sum = 0;
        for (int64_t r = 0; r < rank; ++r)
          sum += w.at(i * k + r, l) * (dual() ? op(r, j) / kept.sigma(r) : op(r, j));
        lift.at(i * k + j, l) = sum;
      }
  }

  // A, z and X = V filter, which is 1 / sigma without a ridge.
  void filter_dual(int l, int k, LaneArray& w, LaneArray& projected, LaneArray& start,
                   LaneArray& lift) {
    const Kept& kept = kept_[l];
    for (int64_t j = 0; j < kept.rank; ++j) {
      // In this order no square underflows.
      const double largest = kept.sigma(0), sigma = kept.sigma(j);
      const double filter = 1 / (sigma + options_.ridge * largest * (largest / sigma));
      for (int64_t i = 0; i < kept.rank; ++i) projected.at(i * k + j, l) *= kept.sigma(i) * filter;
      for (int i = 0; i < n_; ++i) lift.at(i * k + j, l) = w.at(i * k + j, l) * filter;
      start.at(j, l) *= sigma;
    }
  }

  // Operator, start and lift of lane l.
  void store(int l, int k, LaneArray& projected, LaneArray& start, LaneArray& lift) {
    const int64_t rank = kept_[l].rank, at = results_[l];
    double* op = out_.operators + out_.matrix_offsets[at];
    for (int64_t i = 0; i < rank; ++i) {
      for (int64_t j = 0; j < rank; ++j) op[i * rank + j] = projected.at(i * k + j, l);
      out_.start[out_.vector_offsets[at] + i] = start.at(i, l);
    }
    double* to = out_.lifts + out_.lift_offsets[at];
    if (!dual()) {
      for (int64_t i = 0; i < forms_.forms[l].weights; ++i)
        for (int64_t j = 0; j < rank; ++j) to[i * rank + j] = lift.at(i * k + j, l);
      return;
    }
    // Column i of F' holds the observable i + q on top, that of F the one before.
    const int64_t newest = options_.delays - (options_.estimator == Estimator::symmetric ? 1 : 0);
    std::fill_n(to, m_ * rank, 0.0);
    for (int64_t i = 0; i < n_; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        const double own = lift.at(i * k + j, l);
        if (options_.increments) to[(i + newest + 1) * rank + j] += own;
        to[(i + newest) * rank + j] += options_.increments ? -own : own;
      }
  }

  const LaneForms& forms_;
  const int64_t* results_;
  int count_, lanes_, n_;
  int64_t pairs_, m_;
  const FitOptions& options_;
  const OperatorArrays& out_;
  const LaneArray &values_, &vectors_;
  std::vector<Kept> kept_;
};

// The lanes that have converged; those that have not are fitted alone.
void fit_converged(const FormsToFit& group, unsigned converged, Directions& directions,
                   const FitRequest& request) {
  const LaneForms& forms = *group.forms;
  const unsigned open = forms.all() & ~group.done;
  const unsigned failed = open & forms.finite & ~converged;
  EigenFit(forms, group.results, directions, request).run(open & ~failed);
  for (int l = 0; l < forms.count; ++l)
    if (failed >> l & 1u)
      fit_by_eigenvectors(LaneForms(forms.forms + l, 1, 1), group.results + l, request);
}

}  // namespace

void fit_by_eigenvectors(const FormsToFit& low, const FormsToFit& high, const FitRequest& request) {
  if (low.done == low.forms->all() && high.done == high.forms->all()) return;
  const int n = low.forms->order;
  Directions first(*low.forms), second(*high.forms);
  LaneArray work(2 * (2 * n * n + 3 * n));
  const unsigned converged = lane_symmetric_eigen(
      low.forms->square.data(), high.forms->square.data(), n, first.values.data(),
      first.vectors.data(), second.values.data(), second.vectors.data(), work.data());
  fit_converged(low, converged, first, request);
  fit_converged(high, converged >> kLaneCount, second, request);
}

void fit_by_eigenvectors(const LaneForms& alone, const int64_t* results,
                         const FitRequest& request) {
  const int n = alone.order;
  Vector values;
  Matrix vectors;
  symmetric_eigen(Eigen::Map<const Matrix>(alone.square.data(), n, n), values, vectors);
  Directions directions(alone);
  std::copy_n(values.data(), n, directions.values.data());
  std::copy_n(vectors.data(), n * n, directions.vectors.data());
  EigenFit(alone, results, directions, request).run(1);
}

}  // namespace koopfast
