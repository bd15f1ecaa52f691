// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

#include "block_table.h"
#include "tensor_view.h"

// One linear operator a block, in its small form. With h_t the observables of a block,
// F = [h_1 ... h_p], F' = [h_2 ... h_{p+1}] and the truncated SVD F = Q Sigma V^T:
//   operator  A = Q^T F' V Sigma^-1   (k, k)
//   start     z = Q^T h_{p+1}         (k,)
//   lift      Phi = F' V Sigma^-1     newest observable of each column, as the block's form says
// so that U^T h_{p+1} = Phi A^{T-1} z for the least-squares operator U = F' F^+.
namespace koopfast {

enum class BlockStatus : int32_t { ok = 0, still = 1, non_finite = 2 };

// Two equal small forms. `dual` (n_b > m): the lift is (m, k) coefficients of the snapshots and
// the fit sees only their coordinates. `primal` (n_b <= m): the lift is (n_b, k) weights.
enum class BlockForm : int { primal = 0, dual = 1 };

// How the operator is estimated from the pairs; reduced_operator.cpp says more.
enum class Estimator : int {
  least_squares = 0,
  symmetric = 1,  // self-adjoint (symmetric Procrustes)
  forward_backward = 2,
  total_least_squares = 3,
};

// What becomes of an eigenvalue lambda outside the unit circle.
enum class Unstable : int {
  keep = 0,
  clip = 1,  // lambda / |lambda|
  damp = 2,  // lambda / |lambda|^2, its reflection inside
  slow = 3,  // onto a circle of growth that the data can show; only of operators that are chosen
};

// What bounds a block's rank beside its capacity and the tolerance.
enum class RankRule : int {
  none = 0,
  hindcast = 1,       // predict the window's last third from the rest
  energy = 2,         // a share of the sum of squared singular values
  gavish_donoho = 3,  // optimal hard threshold for unknown noise
};

// What hindcast chooses from the data, block by block, beside the rank: bits of FitOptions::chosen.
enum Chosen : int {
  chosen_observables = 1,
  chosen_delays = 2,
  chosen_average = 4,
  chosen_estimator = 8,
};

// The most operators whose weighted mean predicts.
constexpr int64_t kMostMembers = 4;

struct FitOptions {
  bool increments;        // observables w_{t+1} - w_t, else w_t
  int64_t delays;         // q >= 1 consecutive observables stacked
  int64_t block_average;  // a >= 1 consecutive snapshots whose mean is observed
  int chosen;             // Chosen: which of these, and the estimator, are to be chosen instead
  RankRule rank_rule;
  double energy;     // for RankRule::energy
  double tolerance;  // directions below this share of the largest singular value are left out
  double ridge;      // Tikhonov: alpha = ridge * sigma_1^2, added to the squares
  Estimator estimator;
  Unstable unstable;
  bool accurate;  // SVD of F itself, else the eigendecomposition of its smaller Gram matrix
};

// What is known of a block's eigenbasis. Predictions at whole horizons need none: it is computed
// where one is asked for (operator_spectrum), unless eigenvalues had to be moved.
enum class Spectrum : int32_t {
  // As `pending`, and so are the singular values: G = F F^T is kept.
  pending_with_gram = -2,
  pending = -1,
  unusable = 0,  // eigenvalues alone: too badly conditioned a basis to compute with
  usable = 1,
  // The same, computed afterwards: whole horizons go on without it, and keep their bits.
  later_unusable = 2,
  later_usable = 3,
};

// Where each selected block's results go. Block i has room for rank capacity(i); with k its rank,
// matrices are row-major and packed: operator (k, k), lift (rows, k), eigenvectors (k, k).
struct OperatorArrays {
  const int64_t* capacity;        // (count,)
  const int64_t* vector_offsets;  // (count,) into start, singular_values, eigenvalues, amplitudes
  const int64_t* matrix_offsets;  // (count,) into operators, eigenvectors
  int64_t* lift_offsets;   // (count,) into lifts: where there is room for one. Where `lifts` begins
                           // with the operators, a lift that is the operator is left to be that.
  int32_t* status;         // (count,) BlockStatus
  int64_t* rank;           // (count,)
  int32_t* spectrum;       // (count,) Spectrum
  double* hindcast_error;  // (count,) NaN where none was made
  double* trusted_horizon;  // (count,) the same, in recorded intervals
  int32_t* increments;      // (count,) what was fitted, chosen or given: the observables,
  int64_t* delays;          // (count,)
  int64_t* block_average;   // (count,)
  int32_t* estimator;       // (count,) Estimator
  double* mixture;  // (count, kMostMembers, 4) of a weighted mean of operators, heaviest first: the
                    // delays, block_average, snapshots and weight of each; weight 0 ends
                    // the list. Null where nothing is chosen.
  const int64_t* origin_offsets;  // (count,) into origins
  double* singular_values;        // of F, the first `capacity` ones
  double* operators;
  double* start;
  double* lifts;
  double* grams;         // lower triangle of G, by rows, k (k+1) / 2: see gram_offset
  double* origins;       // (rows,) the mean of the last group less w_m, in the lift's form
  double* eigenvalues;   // complex, as pairs
  double* eigenvectors;  // complex, as pairs
  double* amplitudes;    // complex, as pairs: eigenvectors^-1 z
};

inline int64_t gram_offset(const OperatorArrays& out, int64_t i) {
  return (out.matrix_offsets[i] + out.vector_offsets[i]) / 2;
}

// Rows that a fit reads: both kinds where the observables are to be chosen.
inline SnapshotRows rows_of(const FitOptions& options) {
  if (options.chosen & chosen_observables) return SnapshotRows::increments_and_last;
  return options.increments ? SnapshotRows::increments : SnapshotRows::states;
}

// Fits the selected blocks, all of one form. Dual blocks read `coordinates` (count, m, m) of
// rows_of(options), as snapshot_gram + gram_svd or snapshot_qr leave them, and need no snapshots;
// primal blocks read their columns of the snapshots. See operator_lanes.h for the fast way to the
// same results where nothing is to be chosen.
void operator_fit(const SnapshotView& s, const BlockTable& table, const int64_t* blocks,
                  int64_t count, BlockForm form, const double* coordinates,
                  const FitOptions& options, const OperatorArrays& out, int threads);

namespace cuda {

// Blocks that are fitted on the device, all of one form, from their Gram matrices (dual) or their
// moments (primal, moments.h), as operator_lanes.h says.
struct SmallFits {
  BlockForm form;
  int64_t count;
  int64_t m;                      // snapshots
  int64_t pairs;                  // p
  int64_t most;                   // the largest order of a block's matrices
  const int64_t* sizes;           // (count,) n_b
  const double* source;           // Gram matrices (m, m), or K (D, D)
  const int64_t* source_offsets;  // (count,)
  const double* newest;           // primal: h_{p+1}
  const int64_t* newest_offsets;  // (count,)
};

// Doubles that one team needs for matrices of this order.
int64_t operator_fit_workspace(int64_t order);

// On the device and stream of the arrays; `workspace` holds that for each of `teams` warps. Blocks
// whose eigenvalues have to be looked at are left with the spectrum kUnbounded.
void operator_fit(const SmallFits& fits, const FitOptions& options, const OperatorArrays& out,
                  double* workspace, int64_t teams, void* stream);

// Looks at those eigenvalues, and moves them as asked for: operator_spectrum.h. `rows` (count,) of
// the lifts; `workspace` holds bound_spectra_workspace doubles for each of `teams` warps. A block
// whose eigenvalues are not found stays as it is.
int64_t bound_spectra_workspace(int64_t most_rank);
void bound_spectra(const OperatorArrays& out, const int64_t* rows, int64_t count, Unstable unstable,
                   int64_t most_rank, double* workspace, int64_t teams, void* stream);

}  // namespace cuda

}  // namespace koopfast
