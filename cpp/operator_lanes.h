// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "operator_fit.h"
#include "tensor_view.h"

// The fit of operator_fit.h from second moments alone, small blocks eight at a time: least squares
// and self-adjoint operators, with or without a ridge, any rank but by hindcast. Both forms see a
// symmetric matrix and a crossed one,
//   primal  G = F F^T = Q S^2 Q^T (d, d),  C = F' F^T:  A = Q^T C Q S^-2,  Phi = C Q S^-2
//   dual    G = F^T F = V S^2 V^T (p, p),  C = F^T F':  A = S^-1 V^T C V S^-1,  Phi = F' V S^-1
// and neither ever sees F. What a block yields depends on no other block.
namespace koopfast {

// Whether these options can be met: nothing is to be chosen, and snapshots are not averaged.
bool fits_from_moments(const FitOptions& options);

// Primal blocks, from their columns of the snapshots.
void operator_fit_primal(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                         int64_t count, const FitOptions& options, const OperatorArrays& out,
                         int threads);

// Primal blocks of `sizes` weights from their moments over `pairs` pairs (moments.h).
void operator_fit_moments(const double* moments, const int64_t* moment_offsets,
                          const double* latest, const int64_t* latest_offsets, const int64_t* sizes,
                          int64_t count, int64_t pairs, const FitOptions& options,
                          const OperatorArrays& out, int threads);

// Dual blocks of `sizes` weights from the Gram matrices (count, m, m) of snapshot_gram.
void operator_fit_grams(const double* grams, const int64_t* sizes, int64_t count, int64_t m,
                        const FitOptions& options, const OperatorArrays& out, int threads);

}  // namespace koopfast
