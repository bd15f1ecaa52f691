// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "operator_fit.h"
#include "tensor_view.h"

// Blocks of one weight each: their operators are numbers, and all of them are fitted in one pass.
// With o_t the observable of a weight, p pairs,
//   square = sum_{t<p} o_t^2,   factor = sum_{t<p} o_{t+1} o_t / ((1 + ridge) square)
// What follows from square: 0, the weight stands still; not finite, nor is a snapshot.
namespace koopfast {

// squares, factors: (n,). Factors outside the unit circle are moved as asked.
void single_weight_fit(const SnapshotView& s, bool increments, double ridge, Unstable unstable,
                       double* squares, double* factors, int threads);

// Weights at each horizon, as operator_power and combine give them; out (n_horizons, n), rows
// `out_stride` elements apart.
void single_weight_predict(const SnapshotView& s, bool increments, const double* squares,
                           const double* factors, const double* horizons, int64_t n_horizons,
                           void* out, int64_t out_stride, int threads);

namespace cuda {
// As above, on the device and stream of the snapshots.
void single_weight_fit(const SnapshotView& s, bool increments, double ridge, Unstable unstable,
                       double* squares, double* factors, void* stream);
void single_weight_predict(const SnapshotView& s, bool increments, const double* squares,
                           const double* factors, const double* horizons, int64_t n_horizons,
                           void* out, int64_t out_stride, void* stream);
}  // namespace cuda

}  // namespace koopfast
