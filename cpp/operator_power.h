// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "chunk_plan.h"
#include "operator_fit.h"
#include "tensor_view.h"

namespace koopfast {

// What operator_fit left of a set of blocks, to read.
struct FittedBlocks {
  const int64_t* vector_offsets;
  const int64_t* matrix_offsets;
  const int64_t* lift_offsets;
  const int32_t* status;
  const int64_t* rank;
  const int32_t* spectrum;
  const int32_t* increments;
  const int64_t* block_average;
  const int64_t* origin_offsets;
  const double* operators;
  const double* start;
  const double* lifts;
  const double* origins;
  const double* eigenvalues;   // complex, as pairs
  const double* eigenvectors;  // complex, as pairs
  const double* amplitudes;    // complex, as pairs
};

// Powers of every block's operator at every horizon (in recorded intervals; 0 and infinity
// allowed): `values`, at value_offsets[i] a row-major (horizons, rows) for block i, rows = m
// snapshot coefficients (dual) or n_b weights (primal), and `base` (count, horizons), the weight
// of the last snapshot. `combine` makes weights of them. A limit that does not exist is NaN. A
// block of averaged snapshots starts at its origin, in the middle of the last group. A fractional
// or infinite horizon, or an average, needs every eigenbasis (operator_spectrum).
void operator_power(const FittedBlocks& fits, const int64_t* row_counts, int64_t count, bool dual,
                    const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                    double* values, double* base, int threads);

// Predicted weights of the selected blocks, with w_last the last snapshot:
//   dual     out[h] = base[h] w_last + sum_t values[h][t] (w_t - w_last)
//   primal   out[h] = base[h] w_last + values[h]
// in double, rounded once to the snapshots' type. All horizons in one read of the snapshots.
// out: (n_horizons, n), rows `out_stride` elements apart.
void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
             bool dual, const double* base, const int64_t* value_offsets, const double* values,
             int64_t n_horizons, void* out, int64_t out_stride, int threads);

namespace cuda {
// As above, at whole finite horizons of blocks whose snapshots were not averaged. `workspace` holds
// operator_power_workspace doubles for each of `teams` warps.
int64_t operator_power_workspace(int64_t rank, int64_t n_horizons);
void operator_power(const FittedBlocks& fits, const int64_t* row_counts, int64_t count, bool dual,
                    const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                    double* values, double* base, int64_t most_rank, double* workspace,
                    int64_t teams, void* stream);

// As above, on the device and stream that hold the snapshots, the table and the values. Horizons in
// groups of eight read the snapshots again, from the cache.
void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
             const ChunkPlan& plan, bool dual, const double* base, const int64_t* value_offsets,
             const double* values, int64_t n_horizons, void* out, int64_t out_stride, void* stream);
}  // namespace cuda

}  // namespace koopfast
