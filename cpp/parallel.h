// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <omp.h>

#include <cstdint>
#include <exception>
#ifdef __SANITIZE_THREAD__
#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace koopfast {

// Runs body(i) for i = 0 .. count-1 on `threads` threads. What each i computes must not depend on
// the thread that computes it: that is what keeps results equal for every thread count. The first
// exception is rethrown once all threads are done (none may leave an OpenMP region).
#ifdef __SANITIZE_THREAD__
// ThreadSanitizer does not see libgomp's barriers and would call every region a race. Plain threads
// it does see, so the bodies, which are ours, are checked without suppressing anything.
template <typename Body>
void parallel_for(int64_t count, int threads, Body&& body) {
  std::exception_ptr failure;
  std::mutex failed;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failed);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < std::min<int64_t>(threads, count); ++t) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}
#else
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
#endif

}  // namespace koopfast
