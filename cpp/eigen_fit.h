// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "lane_forms.h"

namespace koopfast {

struct FormsToFit {
  const LaneForms* forms;
  const int64_t* results;
  unsigned done;  // lanes that are left alone
};

// Fits forms of one order and kind by the eigenvectors of G: singular values, the rank that they
// and the options make, and the operator in the kept directions. The eigenvectors of both are
// computed together.
void fit_by_eigenvectors(const FormsToFit& low, const FormsToFit& high, const FitRequest& request);

// The same of one form alone, without lanes.
void fit_by_eigenvectors(const LaneForms& alone, const int64_t* results, const FitRequest& request);

}  // namespace koopfast
