// SPDX-License-Identifier: BSD-3-Clause
#include "moment_fit.h"

#include <algorithm>

#include "definite_fit.h"
#include "eigen_fit.h"

namespace koopfast {

void fit_small_forms(const SmallForm* forms, const int64_t* results, int64_t count, int64_t pairs,
                     int64_t m, const FitOptions& options, const OperatorArrays& out) {
  const FitRequest request{pairs, m, options, out};
  if (forms[0].order > kMostLaneOrder) {
    for (int64_t l = 0; l < count; ++l)
      fit_by_eigenvectors(LaneForms(forms + l, 1, 1), results + l, request);
    return;
  }
  const LaneForms low(forms, std::min<int64_t>(count, kLaneCount), kLaneCount);
  if (count <= kLaneCount) return fit_small_forms(low, nullptr, results, request);
  const LaneForms high(forms + kLaneCount, count - kLaneCount, kLaneCount);
  fit_small_forms(low, &high, results, request);
}

void fit_small_forms(const LaneForms& low, const LaneForms* high, const int64_t* results,
                     const FitRequest& request) {
  const unsigned done = fit_definite(low, results, request);
  if (high == nullptr)
    return fit_by_eigenvectors({&low, results, done}, {&low, results, low.all()}, request);
  const unsigned high_done = fit_definite(*high, results + kLaneCount, request);
  fit_by_eigenvectors({&low, results, done}, {high, results + kLaneCount, high_done}, request);
}

}  // namespace koopfast
