// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>

namespace koopfast {

// Runs body(i) for i = 0 .. count-1 on `threads` threads. What each i computes must not depend on
// the thread that computes it: that is what keeps results equal for every thread count. The first
// exception is rethrown once all threads are done (none may leave an OpenMP region).
template <typename Body>
void parallel_for(int64_t count, int threads, Body&& body) {
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && count > 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(koopfast_failure)
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace koopfast
