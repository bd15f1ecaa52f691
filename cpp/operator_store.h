// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "choice.h"
#include "mixture.h"
#include "operator_fit.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

// How a block's results reach the packed arrays, whatever it was fitted from.
namespace koopfast {

// Notes what block i is fitted with.
void note_options(const FitOptions& options, const OperatorArrays& out, int64_t i);

// Notes how the choice did, and what operators its prediction is the mean of.
void note_choice(const Choice& choice, const OperatorArrays& out, int64_t i);

// What block i holds before it is fitted: rank 0, no hindcast, and what was given.
void begin_block(const FitOptions& options, const OperatorArrays& out, int64_t i);

// Stores a reduced operator and its lift as options.unstable wants them; rank 0 makes it still.
void store_block(const Reduced& fit, const Matrix& lift, const FitOptions& options,
                 const OperatorArrays& out, int64_t i);

// Stores the mean of several operators, and the singular values of the heaviest.
void store_mixture(const Mixture& mixture, const Vector& sigma, const OperatorArrays& out,
                   int64_t i);

}  // namespace koopfast
