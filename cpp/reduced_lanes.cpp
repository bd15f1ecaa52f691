// SPDX-License-Identifier: BSD-3-Clause
#include "reduced_lanes.h"

#include <algorithm>
#include <utility>

#include "lane_groups.h"
#include "moment_fit.h"
#include "motion.h"
#include "operator_spectrum.h"

namespace koopfast {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// One block's moments, as operator_lanes.h wants them, in a matrix that owns them.
struct Moments {
  SmallForm form;
  Matrix k;
  Vector newest;  // primal: h_{p+1}
};

bool has_moments(const FitOptions& options) {
  return !options.accurate && (options.estimator == Estimator::least_squares ||
                               options.estimator == Estimator::symmetric);
}

// With as many pairs as stacked rows, the sums of g g^T, g = [o_{t+q}, ..., o_t]; else the inner
// products of the stacked columns, sums of entries of o^T o. (Symmetric: rows may be columns.)
Moments moments_of(const Observed& block, int64_t weights, int64_t delays) {
  const int64_t s = block.o.rows(), columns = block.o.cols() - delays + 1, pairs = columns - 1;
  Moments own;
  if (s * delays <= pairs) {
    const Matrix g = embed(block.o, delays + 1);
    const int64_t order = s * delays, ld = order + s;
    own.k.noalias() = g * g.transpose();
    own.newest.resize(order);
    for (int64_t j = 0; j < delays; ++j)
      own.newest.segment(j * s, s) = block.o.col(block.o.cols() - 1 - j);
    const double* k = own.k.data();
    own.form = {BlockForm::primal, k + s * ld + s, k + s, ld, own.newest.data(), 1, order, weights};
    return own;
  }
  const Matrix gram = block.gram.size() > 0 ? Matrix() : block.o.transpose() * block.o;
  const Matrix& known = block.gram.size() > 0 ? block.gram : gram;
  own.k = known.topLeftCorner(columns, columns);
  for (int64_t l = 1; l < delays; ++l) own.k += known.block(l, l, columns, columns);
  const double* k = own.k.data();
  own.form = {BlockForm::dual, k, k + 1, columns, k + pairs, columns, pairs, weights};
  return own;
}

// Room for the results of fit_small_forms, and who reads them.
class Results {
 public:
  Results(const std::vector<Moments>& blocks, const std::vector<int64_t>& limits, int64_t observed)
      : count_(static_cast<int64_t>(blocks.size())), offsets_(3 * count_), capacity_(count_) {
    int64_t vectors = 0, matrices = 0, lifts = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const SmallForm& form = blocks[i].form;
      const int64_t k = capacity_[i] = std::min(limits[i], form.order);
      offsets_[i] = vectors;
      offsets_[count_ + i] = matrices;
      offsets_[2 * count_ + i] = lifts;
      vectors += k;
      matrices += k * k;
      lifts += k * (form.form == BlockForm::dual ? observed : form.weights);
    }
    integers_.resize(5 * count_);
    counts_.resize(3 * count_);
    const int64_t grams = (matrices + vectors) / 2;
    reals_.resize(2 * count_ + 2 * vectors + 3 * matrices + lifts + grams);
    double* next = reals_.data();
    const auto room = [&](int64_t size) { return std::exchange(next, next + size); };
    out.capacity = capacity_.data();
    out.vector_offsets = offsets_.data();
    out.matrix_offsets = out.vector_offsets + count_;
    out.lift_offsets = offsets_.data() + 2 * count_;
    out.status = integers_.data();
    out.spectrum = out.status + count_;
    out.increments = out.spectrum + count_;
    out.estimator = out.increments + count_;
    out.rank = counts_.data();
    out.delays = out.rank + count_;
    out.block_average = out.delays + count_;
    out.hindcast_error = room(count_);
    out.trusted_horizon = room(count_);
    out.singular_values = room(vectors);
    out.start = room(vectors);
    out.operators = room(matrices);
    out.eigenvectors = room(2 * matrices);
    out.lifts = room(lifts);
    out.grams = room(grams);
  }

  // The fit of block i.
  Reduced read(int64_t i, const Observed& block, const SmallForm& form, const FitOptions& options) {
    const int64_t k = out.rank[i], p = block.o.cols() - options.delays;
    Reduced fit;
    if (out.spectrum[i] == static_cast<int32_t>(Spectrum::pending_with_gram))
      singular_values(out, i);
    fit.of_next = options.estimator != Estimator::symmetric;
    fit.sigma = Eigen::Map<Vector>(out.singular_values + out.vector_offsets[i], capacity_[i]);
    fit.start = Eigen::Map<Vector>(out.start + out.vector_offsets[i], k);
    fit.op = Eigen::Map<RowMajor>(out.operators + out.matrix_offsets[i], k, k);
    const bool dual = form.form == BlockForm::dual;
    const Eigen::Map<RowMajor> lift(out.lifts + out.lift_offsets[i],
                                    dual ? block.o.cols() : form.weights, k);
    if (!dual) {
      fit.image = lift;
      return fit;
    }
    const int64_t newest = options.delays - (fit.of_next ? 0 : 1);
    fit.combining = lift.middleRows(newest, p);
    fit.image.noalias() = block.o.middleCols(newest, p) * fit.combining;
    return fit;
  }

  OperatorArrays out{};

 private:
  const int64_t count_;
  std::vector<int64_t> offsets_, capacity_, counts_;
  std::vector<int32_t> integers_;
  std::vector<double> reals_;
};

}  // namespace

std::vector<Reduced> reduce_together(const std::vector<Observed>& blocks,
                                     const std::vector<BlockShape>& shapes,
                                     const FitOptions& options,
                                     const std::vector<int64_t>& limits) {
  const auto count = static_cast<int64_t>(blocks.size());
  std::vector<Reduced> fits(count);
  if (count == 0 || blocks[0].o.cols() < options.delays + 1) return fits;
  if (!has_moments(options)) {
    for (int64_t i = 0; i < count; ++i)
      fits[i] = reduce(embed(blocks[i].o, options.delays), shapes[i], options, limits[i]);
    return fits;
  }
  // The lift of a dual form is to be in the observables themselves, and its spectrum as it is.
  FitOptions own = options;
  own.increments = false;
  own.unstable = Unstable::keep;
  const int64_t observed = blocks[0].o.cols();
  std::vector<Moments> moments;
  for (int64_t i = 0; i < count; ++i)
    moments.push_back(moments_of(blocks[i], shapes[i].weights, options.delays));
  Results results(moments, limits, observed);
  const FitRequest request{observed - options.delays, observed, own, results.out};
  const Groups groups = group_by(count, 2 * kLaneCount, [&](int64_t i) {
    const SmallForm& form = moments[i].form;
    return 2 * form.order + (form.form == BlockForm::dual ? 1 : 0);
  });
  for (int64_t g = 0; g < groups.count(); ++g) {
    std::vector<SmallForm> forms;
    std::vector<int64_t> at;
    for (int64_t j = groups.first[g]; j < groups.first[g + 1]; ++j) {
      at.push_back(groups.order[j]);
      forms.push_back(moments[at.back()].form);
    }
    fit_small_forms(forms.data(), at.data(), static_cast<int64_t>(at.size()), request.pairs,
                    request.m, own, results.out);
  }
  for (int64_t i = 0; i < count; ++i)
    fits[i] = results.read(i, blocks[i], moments[i].form, options);
  return fits;
}

}  // namespace koopfast
