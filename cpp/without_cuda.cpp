// SPDX-License-Identifier: BSD-3-Clause
// What stands in for cuda/*.cu in a build without CUDA: every name is there and says so when
// called.
#if !KOOPFAST_CUDA_ENABLED

#include <stdexcept>

#include "operator_power.h"
#include "snapshot_svd.h"

namespace koopfast::cuda {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error(
      "koopfast was built without CUDA (KOOPFAST_CUDA=OFF, or no nvcc was found): rebuild it with "
      "KOOPFAST_CUDA=ON, or move the snapshots to the CPU");
}

}  // namespace

void snapshot_gram(const SnapshotView&, const BlockTable&, const int64_t*, int64_t, SnapshotRows,
                   double*, void*) {
  refuse();
}

void combine(const SnapshotView&, const BlockTable&, const int64_t*, int64_t, bool, const double*,
             const int64_t*, const double*, int64_t, void*, int64_t, void*) {
  refuse();
}

}  // namespace koopfast::cuda

#endif
