// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "lane_forms.h"

namespace koopfast {

// Least squares of primal forms whose G is well conditioned: every direction is kept, and
// U = C G^-1 is the operator in the weights' own coordinates, Q = I. It needs no eigenvectors, a
// third of the work of a fit; singular values are left for operator_spectrum. Returns the lanes
// that it has fitted; none where a direction might have to be left out.
unsigned fit_definite(const LaneForms& forms, const int64_t* results, const FitRequest& request);

}  // namespace koopfast
