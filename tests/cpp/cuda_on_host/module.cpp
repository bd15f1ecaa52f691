// SPDX-License-Identifier: BSD-3-Clause
// The CUDA kernels as a Python module that runs them on the host: one translation unit.
#include <cuda_runtime.h>

#include "bindings_cuda.h"

// clang-format off: in the order of the build
#include "../../../cuda/device.cu"
#include "../../../cuda/moments.cu"
#include "../../../cuda/operator_fit.cu"
#include "../../../cuda/operator_power.cu"
#include "../../../cuda/single_weights.cu"
#include "../../../cuda/snapshot_svd.cu"
#include "../../../cpp/bindings_cuda.cpp"
// clang-format on

PYBIND11_MODULE(cuda_on_host, m) {
  koopfast::bind_cuda(m);
  m.attr("cuda_compiled") = true;
  m.def("fail_next", [] { pending_error() = cudaErrorInvalidConfiguration; });
  // The order in which threads run: nothing may depend on it.
  m.def("run_backwards", [](bool backwards) { emulated::state().backwards = backwards; });
}
