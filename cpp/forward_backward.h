// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "solvers/solvers.h"

namespace koopfast {

// Forward-backward DMD (Dawson, Hemati, Williams & Rowley 2016, Exp. Fluids 57:42, section 3.2):
// A = (A_f A_b^-1)^(1/2), the root closest to A_f, of the pairs whitened by Sigma: their F is V^T,
// `next` (k, p) is Sigma^-1 Q^T F', and so is A. Whitening changes no root, and keeps the condition
// number of F out of it. False where that root does not exist or cannot be told from others.
bool forward_backward_root(const Matrix& v, const Matrix& next, Matrix& root);

}  // namespace koopfast
