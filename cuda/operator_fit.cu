// SPDX-License-Identifier: BSD-3-Clause
#include "operator_fit.h"

#include "math/small_fit.h"
#include "math/unit_disc.h"
#include "warp_team.cuh"

// Thousands of small fits: a warp a block, one block after another, in a workspace of its own. What
// a block costs is the chain of rotations of its eigenproblem, some hundred of them, each waiting
// for a square root and a division, so many warps side by side are what counts. The matrices stay
// in global memory: those of the resident warps fit the caches, and no order is too large for them.
// The resident CTAs are stated, as many as leave registers for all that is kept: left to itself the
// compiler aims at more, and spills.
namespace koopfast::cuda {
namespace {

__global__ void __launch_bounds__(kWarp* kWarps, 4)
    operator_fit_kernel(SmallFits fits, FitOptions options, OperatorArrays out, double* workspace,
                        int64_t teams) {
  const int64_t team = warp_index();
  if (team >= teams) return;
  double* work = workspace + team * small_fit_workspace(fits.most);
  for (int64_t i = team; i < fits.count; i += teams) {
    const int64_t size = fits.sizes[i];
    const bool dual = fits.form == BlockForm::dual;
    const int64_t order = dual ? fits.pairs : size * options.delays;
    const SmallMoments moments{fits.form,
                               fits.source + fits.source_offsets[i],
                               dual ? nullptr : fits.newest + fits.newest_offsets[i],
                               dual ? fits.m : size * (options.delays + 1),
                               size,
                               options.delays,
                               order,
                               fits.pairs,
                               fits.m};
    fit_small(WarpTeam{}, moments, options, out, i, work);
    __syncwarp();  // before the next block takes the workspace
  }
}

__global__ void __launch_bounds__(kWarp* kWarps, 5)
    bound_spectra_kernel(OperatorArrays out, const int64_t* rows, int64_t count, Unstable unstable,
                         int64_t most_rank, double* workspace, int64_t teams) {
  const int64_t team = warp_index();
  if (team >= teams) return;
  double* work = workspace + team * unit_disc_workspace(most_rank);
  for (int64_t i = team; i < count; i += teams) {
    if (out.spectrum[i] != kUnbounded) continue;
    __syncwarp();  // all have looked before the first lane writes
    team_bound_spectrum(WarpTeam{}, out, i, rows[i], unstable, work);
    __syncwarp();
  }
}

}  // namespace

int64_t operator_fit_workspace(int64_t order) { return small_fit_workspace(order); }

void operator_fit(const SmallFits& fits, const FitOptions& options, const OperatorArrays& out,
                  double* workspace, int64_t teams, void* stream) {
  launch({grid_of_warps(teams), kWarp * kWarps, stream}, operator_fit_kernel, fits, options, out,
         workspace, teams);
}

int64_t bound_spectra_workspace(int64_t most_rank) { return unit_disc_workspace(most_rank); }

void bound_spectra(const OperatorArrays& out, const int64_t* rows, int64_t count, Unstable unstable,
                   int64_t most_rank, double* workspace, int64_t teams, void* stream) {
  launch({grid_of_warps(teams), kWarp * kWarps, stream}, bound_spectra_kernel, out, rows, count,
         unstable, most_rank, workspace, teams);
}

}  // namespace koopfast::cuda
