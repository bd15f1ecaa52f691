// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "lane_forms.h"

namespace koopfast {

// Eight side by side, and eight beside those where that saves time.
constexpr int64_t kMostForms = 2 * kLaneCount;

// Fits up to kMostForms forms of one order and form; results[l] is where those of forms[l] go. `m`
// counts the snapshots (dual) that coefficients stand for.
void fit_small_forms(const SmallForm* forms, const int64_t* results, int64_t count, int64_t pairs,
                     int64_t m, const FitOptions& options, const OperatorArrays& out);

// The same of forms that stand side by side already, of one or two groups of eight.
void fit_small_forms(const LaneForms& low, const LaneForms* high, const int64_t* results,
                     const FitRequest& request);

}  // namespace koopfast
