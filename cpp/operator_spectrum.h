// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "solvers/solvers.h"

namespace koopfast {

// Writes an eigenbasis of block i, and the amplitudes of its start in it.
void store_basis(const OperatorArrays& out, int64_t i, const Eigenbasis& basis);

// Bounds the spectrum of fitted block i, whose lift has `rows` rows, as asked: eigenvalues outside
// the unit circle are moved, in operator and lift. The eigenbasis is left pending where nothing
// needs it: where all is to be kept, or the powers of A say that nothing lies outside.
void bound_spectrum(const OperatorArrays& out, int64_t i, int64_t rows, Unstable unstable);

// The same where it is known that eigenvalues have to be looked at.
void move_spectrum(const OperatorArrays& out, int64_t i, int64_t rows, Unstable unstable);

// The same for blocks 0 .. count-1.
void move_spectra(const OperatorArrays& out, const int64_t* rows, int64_t count, Unstable unstable,
                  int threads);

// Singular values of block i, whose G was kept (pending_with_gram).
void singular_values(const OperatorArrays& out, int64_t i);

// Computes the eigenbases, and singular values, that are pending.
void operator_spectrum(const OperatorArrays& out, int64_t count, int threads);

}  // namespace koopfast
