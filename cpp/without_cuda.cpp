// SPDX-License-Identifier: BSD-3-Clause
// What stands in for cuda/*.cu in a build without CUDA: every name is there and says so when
// called.
#if !KOOPFAST_CUDA_ENABLED

#include <stdexcept>

#include "device.h"
#include "moment_stream.h"
#include "moments.h"
#include "operator_fit.h"
#include "operator_power.h"
#include "single_weights.h"
#include "snapshot_svd.h"

namespace koopfast::cuda {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error(
      "koopfast was built without CUDA (KOOPFAST_CUDA=OFF, or no nvcc was found): rebuild it with "
      "KOOPFAST_CUDA=ON, or move the snapshots to the CPU");
}

}  // namespace

std::string failure(int) { return "koopfast was built without CUDA"; }

void use(int) { refuse(); }

void snapshot_gram(const SnapshotView&, const BlockTable&, const int64_t*, const ChunkPlan&,
                   SnapshotRows, double*, double*, void*) {
  refuse();
}

void combine(const SnapshotView&, const BlockTable&, const int64_t*, const ChunkPlan&, bool,
             const double*, const int64_t*, const double*, int64_t, void*, int64_t, void*) {
  refuse();
}

int64_t operator_fit_workspace(int64_t) { refuse(); }

void operator_fit(const SmallFits&, const FitOptions&, const OperatorArrays&, double*, int64_t,
                  void*) {
  refuse();
}

int64_t bound_spectra_workspace(int64_t) { refuse(); }

void bound_spectra(const OperatorArrays&, const int64_t*, int64_t, Unstable, int64_t, double*,
                   int64_t, void*) {
  refuse();
}

int64_t operator_power_workspace(int64_t, int64_t) { refuse(); }

void operator_power(const FittedBlocks&, const int64_t*, int64_t, bool, const double*, int64_t,
                    const int64_t*, double*, double*, int64_t, double*, int64_t, void*) {
  refuse();
}

void snapshot_moments(const SnapshotView&, const BlockTable&, const int64_t*, int64_t, bool,
                      int64_t, const int64_t*, double*, const int64_t*, double*, void*) {
  refuse();
}

void fold_moments(const MomentStream&, const BlockTable&, int64_t, int64_t, void*) { refuse(); }

void single_weight_fit(const SnapshotView&, bool, double, Unstable, double*, double*, void*) {
  refuse();
}

void single_weight_predict(const SnapshotView&, bool, const double*, const double*, const double*,
                           int64_t, void*, int64_t, void*) {
  refuse();
}

}  // namespace koopfast::cuda

#endif
