// SPDX-License-Identifier: BSD-3-Clause
#include "moment_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "math/small_matrix.h"
#include "operator_spectrum.h"
#include "operator_store.h"
#include "reduced_operator.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

bool is_finite(const SmallForm& f) {
  double probe = 0;  // NaN as soon as something is not finite
  for (int64_t i = 0; i < f.order; ++i) {
    for (int64_t j = 0; j < f.order; ++j)
      probe += 0 * f.square[i * f.ld + j] + 0 * f.crossed[i * f.ld + j];
    probe += 0 * f.latest[i * f.latest_stride];
  }
  return probe == 0;
}

// A power of two that brings the largest entry of G (on its diagonal) to between 1/2 and 1.
double scale_of(const SmallForm& f) {
  double largest = 0;
  for (int64_t i = 0; i < f.order; ++i) largest = std::max(largest, f.square[i * f.ld + i]);
  if (!(largest > 0)) return 1;
  int exponent;
  std::frexp(largest, &exponent);
  // (The scale itself must be a normal number, and so must its inverse.)
  return std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
}

// One block's part of a group: the directions that it keeps, largest first.
struct Kept {
  bool usable = false;         // finite, and its eigenvalues converged
  std::vector<int64_t> order;  // which eigenvectors
  Vector sigma;                // all singular values of F
  int64_t rank = 0;
};

// Eight blocks side by side, or one alone by Eigen's routines.
class SmallFit {
 public:
  SmallFit(const SmallForm* forms, const int64_t* results, int64_t count, int lanes, int64_t pairs,
           int64_t m, const FitOptions& options, const OperatorArrays& out)
      : forms_(forms),
        results_(results),
        count_(static_cast<int>(count)),
        lanes_(lanes),
        n_(static_cast<int>(forms[0].order)),
        pairs_(pairs),
        m_(m),
        options_(options),
        out_(out),
        square_(n_ * n_, lanes),
        crossed_(n_ * n_, lanes),
        latest_(n_, lanes),
        values_(n_, lanes),
        vectors_(n_ * n_, lanes),
        kept_(count) {}

  void run() {
    load();
    const unsigned converged = eigen();
    int most = 0;
    for (int l = 0; l < count_; ++l) {
      if (kept_[l].usable && !(converged >> l & 1u)) {
        SmallFit(forms_ + l, results_ + l, 1, 1, pairs_, m_, options_, out_).run();
        continue;
      }
      choose(l);
      most = std::max(most, static_cast<int>(kept_[l].rank));
    }
    if (most > 0) project(most);
  }

 private:
  // Eigenvalues, and eigenvectors by rows; the lanes that have converged.
  unsigned eigen() {
    if (lanes_ > 1) {
      LaneArray square(n_ * n_), work(2 * n_);
      std::copy_n(square_.data(), n_ * n_ * lanes_, square.data());
      return lane_symmetric_eigen(square.data(), n_, values_.data(), vectors_.data(), work.data());
    }
    Vector values;
    Matrix vectors;
    symmetric_eigen(Eigen::Map<const Matrix>(square_.data(), n_, n_), values, vectors);
    std::copy_n(values.data(), n_, values_.data());
    std::copy_n(vectors.data(), n_ * n_, vectors_.data());
    return 1;
  }

  void multiply(LaneArray& a, LaneArray& b, int rows, int inner, int columns, LaneArray& out) {
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

  void load() {
    for (int l = 0; l < count_; ++l) {
      const SmallForm& f = forms_[l];
      kept_[l].usable = is_finite(f);
      // What is not finite is left out: zeros, whose eigenvalues are found at once.
      if (!kept_[l].usable) continue;
      scale_[l] = scale_of(f);
      for (int i = 0; i < n_; ++i) {
        for (int j = 0; j < n_; ++j) {
          square_.at(i * n_ + j, l) = scale_[l] * f.square[i * f.ld + j];
          crossed_.at(i * n_ + j, l) = scale_[l] * f.crossed[i * f.ld + j];
        }
        // F^T h is of the second order, too; h itself is not.
        latest_.at(i, l) = (dual() ? scale_[l] : 1.0) * f.latest[i * f.latest_stride];
      }
    }
  }

  // Status, singular values and rank of lane l.
  void choose(int l) {
    Kept& kept = kept_[l];
    const int64_t at = results_[l], capacity = out_.capacity[at];
    double* shown = out_.singular_values + out_.vector_offsets[at];
    begin_block(options_, out_, at);
    if (!kept.usable) {
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
      kept.sigma(i) = std::sqrt(std::max(0.0, values_.at(kept.order[i], l)) / scale_[l]);
    std::copy_n(kept.sigma.data(), std::min<int64_t>(capacity, kept.sigma.size()), shown);
    kept.rank =
        chosen_rank(kept.sigma, forms_[l].weights * options_.delays, pairs_, options_, capacity);
    out_.rank[at] = kept.rank;
    out_.status[at] = static_cast<int32_t>(kept.rank > 0 ? BlockStatus::ok : BlockStatus::still);
  }

  // Operators, lifts and starts from the kept eigenvectors W. An eigensolver leaves errors of
  // eps s_1^2, far above the rounding of G in what is small of it: quotients are formed with
  // D = W^T G W, its diagonal to begin with.
  void project(int k) {
    LaneArray w(n_ * k, lanes_), w_transposed(k * n_, lanes_), inverse(k, lanes_);
    LaneArray image(n_ * k, lanes_), divisor(k * k, lanes_), work(n_ * k, lanes_);
    for (int l = 0; l < count_; ++l)
      for (int64_t j = 0; j < kept_[l].rank; ++j)
        for (int i = 0; i < n_; ++i)
          w.at(i * k + j, l) = w_transposed.at(j * n_ + i, l) =
              vectors_.at(kept_[l].order[j] * n_ + i, l);
    multiply(square_, w, n_, n_, k, image);
    multiply(w_transposed, image, k, n_, k, divisor);
    for (int l = 0; l < count_; ++l)
      for (int64_t j = 0; j < kept_[l].rank; ++j) {
        // The ridge of a dual fit is in its filter.
        if (!dual()) divisor.at(j * k + j, l) += ridge(l) * scale_[l];
        inverse.at(j, l) = 1 / divisor.at(j * k + j, l);
      }
    multiply(crossed_, w, n_, n_, k, image);
    LaneArray projected(k * k, lanes_), start(k, lanes_), lift(n_ * k, lanes_);
    if (options_.estimator == Estimator::symmetric) {
      multiply(w_transposed, image, k, n_, k, projected);
      multiply(w_transposed, latest_, k, n_, 1, start);
      for (int l = 0; l < count_; ++l) procrustes(l, k, w, projected, start, lift);
    } else if (dual()) {
      // A = S D^-1 B filter, z = S D^-1 V^T b with B = V^T C V: D^-1 B by its transpose.
      LaneArray own(k * k, lanes_), transposed(k * k, lanes_), latest(k, lanes_);
      multiply(w_transposed, image, k, n_, k, own);
      transpose(own, k, transposed);
      divide(transposed, divisor, inverse, k, k, own, work);
      transpose(own, k, projected);
      multiply(w_transposed, latest_, k, n_, 1, latest);
      divide(latest, divisor, inverse, 1, k, start, work);
      for (int l = 0; l < count_; ++l) filter_dual(l, k, w, projected, start, lift);
    } else {
      // Phi = C Q D^-1, A = Q^T Phi.
      divide(image, divisor, inverse, n_, k, lift, work);
      multiply(w_transposed, lift, k, n_, k, projected);
      multiply(w_transposed, latest_, k, n_, 1, start);
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
    return forms_[l].form == BlockForm::dual ? m_ : forms_[l].weights;
  }

  bool dual() const { return forms_[0].form == BlockForm::dual; }

  double ridge(int l) const { return options_.ridge * kept_[l].sigma(0) * kept_[l].sigma(0); }

  // Symmetric Procrustes as in reduced_operator.cpp, from B = W^T C W; the image Q A, or X of F X.
  void procrustes(int l, int k, LaneArray& w, LaneArray& projected, LaneArray& start,
                  LaneArray& lift) {
    const Kept& kept = kept_[l];
    const int64_t rank = kept.rank;
    Matrix op(rank, rank);
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t j = 0; j < rank; ++j) {
        const double own = projected.at(i * k + j, l) / scale_[l], si = kept.sigma(i);
        const double other = projected.at(j * k + i, l) / scale_[l], sj = kept.sigma(j);
        const double both = dual() ? other * (si / sj) + own * (sj / si) : other + own;
        op(i, j) = both / (si * si + sj * sj + 2 * ridge(l));
      }
    for (int64_t i = 0; i < rank; ++i) {
      for (int64_t j = 0; j < rank; ++j) projected.at(i * k + j, l) = op(i, j);
      if (dual()) start.at(i, l) /= kept.sigma(i) * scale_[l];
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
      for (int64_t i = 0; i < forms_[l].weights; ++i)
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

  const SmallForm* forms_;
  const int64_t* results_;
  int count_, lanes_, n_;
  int64_t pairs_, m_;
  const FitOptions& options_;
  const OperatorArrays& out_;
  LaneArray square_, crossed_, latest_, values_, vectors_;
  std::vector<Kept> kept_;
  double scale_[kLaneCount];
};

}  // namespace

void fit_small_forms(const SmallForm* forms, const int64_t* results, int64_t count, int64_t pairs,
                     int64_t m, const FitOptions& options, const OperatorArrays& out) {
  if (forms[0].order <= kMostLaneOrder)
    return SmallFit(forms, results, count, kLaneCount, pairs, m, options, out).run();
  for (int64_t l = 0; l < count; ++l)
    SmallFit(forms + l, results + l, 1, 1, pairs, m, options, out).run();
}

}  // namespace koopfast
