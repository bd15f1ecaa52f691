// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace koopfast::cuda {

// Throws with the place, the error's name and its text. Reading the last error clears it, so that
// a failed launch is not blamed on whoever calls CUDA next.
inline void check(cudaError_t error, const char* file, int line) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": CUDA error " +
                           cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

}  // namespace koopfast::cuda

#define KF_CUDA_CHECK(call) ::koopfast::cuda::check((call), __FILE__, __LINE__)
