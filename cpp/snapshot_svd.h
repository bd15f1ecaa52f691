// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "chunk_plan.h"
#include "tensor_view.h"

// The tall-skinny factorisation of each block's snapshots. With E (m, n_b) the block's
// SnapshotRows and E^T = Q Sigma V^T, it yields Sigma and the coordinates N = Sigma V^T (s, m), s =
// min(m, n_b): all that a fit needs of the n_b weights. Increments are factored as such, not as
// differences from one reference snapshot: a long drift is far larger than its steps, and a Gram
// matrix would square that ratio into its noise. For the same reason a last row w_m is no part of
// that factorisation: Sigma and V are those of the increments, and N gets its components in their
// span and, as row s, what lies outside: zeros and |w_m - Q Q^T w_m|.
namespace koopfast {

// Gram matrices E E^T of the `count` blocks named in `blocks`, accumulated in double.
// grams: (count, m, m). Costs one read of the snapshots and m^2 flops a weight.
void snapshot_gram(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   int64_t count, SnapshotRows rows, double* grams, int threads);

// Sigma and N of each Gram matrix. N takes the matrix's place: s = min(m, sizes[i]) rows of m,
// then zeros. sigma: (count, m), zero from s on. A block that is not finite has NaN in both.
// Singular values below about 1e-8 of the largest are noise: the Gram matrix squares them.
void gram_svd(double* grams, const int64_t* sizes, int64_t count, int64_t m, SnapshotRows rows,
              double* sigma, int threads);

// The same Sigma and N by TSQR and the SVD of its R, accurate to about 1e-15 of the largest
// singular value, for about four times the flops.
void snapshot_qr(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                 int64_t count, SnapshotRows rows, double* coordinates, double* sigma, int threads);

namespace cuda {
// As above, on the device and stream that hold the snapshots and the table. `partials` has room for
// the Gram matrix of every chunk of the blocks that have several: (slots, m, m).
void snapshot_gram(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                   const ChunkPlan& plan, SnapshotRows rows, double* grams, double* partials,
                   void* stream);
}  // namespace cuda

}  // namespace koopfast
