// SPDX-License-Identifier: BSD-3-Clause
#include "device.h"

#include "check.cuh"

namespace koopfast::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

std::string failure(int device) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(device);
  // Loads the module: fails where this build holds nothing that the device or its driver can run.
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

void use(int device) { KF_CUDA_CHECK(cudaSetDevice(device)); }

}  // namespace koopfast::cuda
