// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "tensor_view.h"

// Second moments of a block's observables: what a least-squares fit of a primal block sees of its
// snapshots, whatever their number. With o_0 ... o_{P-1} the observables of n_b weights, q delays
// and p = P - q pairs,
//   g_t = [o_{t+q}, o_{t+q-1}, ..., o_t]   (D,), D = (q + 1) n_b, newest first,   t < p
//   K   = sum_t g_t g_t^T                  (D, D) row-major, symmetric, both triangles written
//   latest = [o_{P-1}, ..., o_{P-q}]       (d,), d = q n_b: h_{p+1}, where predictions start
// so that, with F = [h_1 ... h_p] and F' = [h_2 ... h_{p+1}],
//   F F^T = K[n_b:, n_b:]    F' F^T = K[:d, n_b:]    F' F'^T = K[:d, :d]
// A further snapshot adds one g_t g_t^T: moments can be summed as snapshots arrive.
namespace koopfast {

struct MomentShape {
  int64_t weights;  // n_b
  int64_t delays;   // q

  int64_t pair() const { return (delays + 1) * weights; }  // D
  int64_t stacked() const { return delays * weights; }     // d
};

// What a fit that reads no F' F'^T needs not have summed: K's first (n_b, n_b) is left zero.
enum class Moments : int { all = 0, of_pairs = 1 };

// Moments of `count` blocks of one size over all of the snapshots, in double; those of one block
// are `stride` doubles after those of the last. Long windows are summed in pieces of a fixed
// length, so that it does not matter how many threads share them.
void group_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   int64_t count, bool increments, int64_t delays, Moments wanted, double* moments,
                   double* latest, int64_t stride);

// The same for the selected blocks: K of block i at moment_offsets[i], its `latest` at
// latest_offsets[i]. One read of the snapshots.
void snapshot_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                      int64_t count, bool increments, int64_t delays, Moments wanted,
                      const int64_t* moment_offsets, double* moments, const int64_t* latest_offsets,
                      double* latest, int threads);

namespace cuda {
// As above, Moments::all, on the device and stream of the snapshots; for blocks of few weights.
void snapshot_moments(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                      int64_t count, bool increments, int64_t delays, const int64_t* moment_offsets,
                      double* moments, const int64_t* latest_offsets, double* latest, void* stream);
}  // namespace cuda

}  // namespace koopfast
