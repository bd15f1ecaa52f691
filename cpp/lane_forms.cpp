// SPDX-License-Identifier: BSD-3-Clause
#include "lane_forms.h"

#include <algorithm>
#include <cmath>

#include "lane_moments.h"

namespace koopfast {
namespace {

// (rows, columns) of one form alone; whether all is finite.
bool copy_alone(const double* from, int rows, int columns, int64_t ld, double* out) {
  double probe = 0;  // NaN as soon as something is not finite
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      out[i * columns + j] = from[i * ld + j];
      probe += 0 * from[i * ld + j];
    }
  return probe == 0;
}

void scale_alone(double factor, int entries, double* a) {
  for (int i = 0; i < entries; ++i) a[i] = factor > 0 ? factor * a[i] : 0.0;
}

}  // namespace

double power_of_two_scale(const double* g, int64_t order, int64_t step) {
  double largest = 0;
  for (int64_t i = 0; i < order; ++i) largest = std::max(largest, g[i * (order + 1) * step]);
  if (!(largest > 0)) return 1;
  int exponent;
  std::frexp(largest, &exponent);
  // (The scale itself must be a normal number, and so must its inverse.)
  return std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
}

LaneForms::LaneForms(const SmallForm* forms, int64_t n_forms, int n_lanes)
    : form(forms[0].form),
      count(static_cast<int>(n_forms)),
      lanes(n_lanes),
      order(static_cast<int>(forms[0].order)),
      square(order * order, lanes),
      crossed(order * order, lanes),
      latest(order, lanes) {
  const double *squares[kLaneCount], *crosses[kLaneCount], *ends[kLaneCount];
  for (int l = 0; l < lanes; ++l) {  // lanes to spare repeat the first form
    const SmallForm& f = forms[l < count ? l : 0];
    weights[l] = f.weights;
    squares[l] = f.square;
    crosses[l] = f.crossed;
    ends[l] = f.latest;
  }
  const int64_t ld = forms[0].ld, stride = forms[0].latest_stride;
  if (lanes > 1)
    finite = lane_gather(squares, order, order, ld, square.data()) &
             lane_gather(crosses, order, order, ld, crossed.data()) &
             lane_gather(ends, order, 1, stride, latest.data());
  else  // (no short cut: everything is to be copied)
    finite = copy_alone(squares[0], order, order, ld, square.data()) &
             copy_alone(crosses[0], order, order, ld, crossed.data()) &
             copy_alone(ends[0], order, 1, stride, latest.data());
  rescale();
}

LaneForms::LaneForms(const LaneMoments& moments, int64_t n_forms, int64_t n_weights, int64_t delays)
    : form(BlockForm::primal),
      count(static_cast<int>(n_forms)),
      lanes(kLaneCount),
      order(static_cast<int>(n_weights * delays)),
      square(order * order),
      crossed(order * order),
      latest(order) {
  std::fill_n(weights, kLaneCount, n_weights);
  moments.store(square, crossed, latest);
  finite = lane_finite(square.data(), order * order) & lane_finite(crossed.data(), order * order) &
           lane_finite(latest.data(), order);
  rescale();
}

LaneForms::LaneForms(const LaneForms& forms, int lane)
    : form(forms.form),
      count(1),
      lanes(1),
      order(forms.order),
      finite(forms.finite >> lane & 1u),
      square(order * order, 1),
      crossed(order * order, 1),
      latest(order, 1) {
  weights[0] = forms.weights[lane];
  scale[0] = forms.scale[lane];
  for (int i = 0; i < order * order; ++i) {
    square.at(i, 0) = forms.square.at(i, lane);
    crossed.at(i, 0) = forms.crossed.at(i, lane);
  }
  for (int i = 0; i < order; ++i) latest.at(i, 0) = forms.latest.at(i, lane);
}

void LaneForms::rescale() {
  double factors[kLaneCount], end_factors[kLaneCount];
  for (int l = 0; l < lanes; ++l) {
    scale[l] = is_finite(l) ? power_of_two_scale(square.data() + l, order, lanes) : 1;
    factors[l] = is_finite(l) ? scale[l] : 0;
    // F^T h is of the second order, too; h itself is not.
    end_factors[l] = dual() || !is_finite(l) ? factors[l] : 1;
  }
  if (lanes > 1) {
    lane_scale(factors, order * order, square.data());
    lane_scale(factors, order * order, crossed.data());
    lane_scale(end_factors, order, latest.data());
    return;
  }
  scale_alone(factors[0], order * order, square.data());
  scale_alone(factors[0], order * order, crossed.data());
  scale_alone(end_factors[0], order, latest.data());
}

}  // namespace koopfast
