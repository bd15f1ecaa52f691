// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "operator_fit.h"
#include "tensor_view.h"

namespace koopfast {

// Moments of every block's observables o_0 ... o_{P-1}, summed as snapshots arrive, from which its
// operator is fitted without the snapshots. o_s is the increment w_{s+1} - w_s, or the state
// w_s - w_0: weights move by parts in a thousand, and raw squares would lose the motion. What a fit
// needs of g_u = [o_u, o_{u-1}, ..., o_{u-q}] is sum_u g_u g_u^T, whose (i, j) part is a sum of
// o_{s+j-i} o_s^T. Over the s that all parts of one lag have in common, it is kept once a lag:
//   lags   lag k = sum_{s=q-k}^{folded-1-q} o_{s+k} o_s^T   (n_b, n_b) row-major, k = 0 .. q
//   sums   sum_{s=q}^{folded-1-q} o_s, for states           (n_b,)
// The few terms at both ends come from the first and the latest snapshots.
struct MomentStream {
  SnapshotView head;           // the first q + 1 snapshots
  SnapshotView recent;         // snapshots max(0, folded - q) .. the newest
  int64_t folded;              // observables in the sums: 0, or 2 q + 1 and more
  bool increments;             // else states
  int64_t delays;              // q
  const int64_t* lag_offsets;  // (n_blocks,) of each block's lags in `lags`
  const int64_t* sum_offsets;  // (n_blocks,) of each block's sums in `sums`
  double* lags;
  double* sums;  // null for increments
};

// Adds to the sums of every block until they hold `until` observables, 2 q + 1 or more.
void fold_moments(const MomentStream& stream, const BlockTable& table, int64_t n_blocks,
                  int64_t until, int threads);

// Fits every block in its primal form. RankRule::hindcast predicts the latest `tail` observables
// from those before; folded <= P - tail.
void moment_fit(const MomentStream& stream, const BlockTable& table, int64_t n_blocks, int64_t tail,
                const FitOptions& options, const OperatorArrays& out, int threads);

namespace cuda {
// fold_moments on the device and stream that hold the moments and the recent snapshots.
void fold_moments(const MomentStream& stream, const BlockTable& table, int64_t n_blocks,
                  int64_t until, void* on);
}  // namespace cuda

}  // namespace koopfast
