// SPDX-License-Identifier: BSD-3-Clause
#include "device.h"

#include "check.cuh"

namespace koopfast::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

std::string failure() {
  cudaFuncAttributes attributes;
  // Loads the module: fails where this build holds nothing that the device or its driver can run.
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

}  // namespace koopfast::cuda
