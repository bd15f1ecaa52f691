// SPDX-License-Identifier: BSD-3-Clause
#include "single_weights.h"

#include "math/single_weight.h"
#include "windows.cuh"

// Bound by reading the snapshots once: a thread holds two sums of each of four neighbouring
// weights.
namespace koopfast::cuda {
namespace {

constexpr int kThreads = kWarp * kWarps;

// The four weights of a thread.
__device__ __forceinline__ Columns columns_of(int64_t thread, int64_t n) {
  Columns at;
  at.column = 4 * thread;
  at.whole = at.column + 4 <= n;
#pragma unroll
  for (int k = 0; k < 4; ++k) at.flat[k] = at.column + k < n ? at.column + k : -1;
  return at;
}

__device__ __forceinline__ int64_t thread_index() {
  return blockIdx.x * int64_t{kThreads} + threadIdx.x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    single_weight_fit_kernel(SnapshotView s, bool increments, double ridge, Unstable unstable,
                             bool aligned, double* squares, double* factors) {
  const Columns at = columns_of(thread_index(), s.n);
  if (at.flat[0] < 0) return;
  const T* data = static_cast<const T*>(s.data);
  T value[4];
  double state[4], now[4], square[4] = {}, product[4] = {};
  load(data, at, aligned, value);
#pragma unroll
  for (int k = 0; k < 4; ++k) state[k] = now[k] = widen(value[k]);
#pragma unroll 4
  for (int64_t t = 1; t < s.m; ++t) {
    load(data + t * s.row_stride, at, aligned, value);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const double wide = widen(value[k]), next = increments ? wide - state[k] : wide;
      // The first increment has none before it.
      if (!increments || t > 1) {
        square[k] += now[k] * now[k];
        product[k] += next * now[k];
      }
      state[k] = wide;
      now[k] = next;
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (at.flat[k] < 0) continue;
    // The last observable counts, too: NaN where it is not finite, or a product overflowed.
    squares[at.flat[k]] = square[k] + 0 * product[k];
    factors[at.flat[k]] = bounded_factor(product[k] / ((1 + ridge) * square[k]), unstable);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    single_weight_predict_kernel(SnapshotView s, bool increments, const double* squares,
                                 const double* factors, const double* horizons, int64_t n_horizons,
                                 bool aligned, T* out, int64_t out_stride) {
  const Columns at = columns_of(thread_index(), s.n);
  if (at.flat[0] < 0) return;
  const T* data = static_cast<const T*>(s.data);
  T last[4], before[4];
  load(data + (s.m - 1) * s.row_stride, at, aligned, last);
  load(data + (s.m - 2) * s.row_stride, at, aligned, before);
  double square[4], factor[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    square[k] = at.flat[k] >= 0 ? squares[at.flat[k]] : 0;
    factor[k] = at.flat[k] >= 0 ? factors[at.flat[k]] : 0;
  }
  for (int64_t h = 0; h < n_horizons; ++h) {
    Four<T> four;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      predict_single_weight(square[k], factor[k], increments, horizons[h], last[k], before[k],
                            four.value[k]);
    store(four, at, aligned, out + h * out_stride);
  }
}

dim3 grid_of(int64_t n) {
  constexpr int64_t kWeights = 4 * kThreads;
  return dim3(static_cast<unsigned>((n + kWeights - 1) / kWeights));
}

}  // namespace

void single_weight_fit(const SnapshotView& s, bool increments, double ridge, Unstable unstable,
                       double* squares, double* factors, void* stream) {
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    launch({grid_of(s.n), kThreads, stream}, single_weight_fit_kernel<T>, s, increments, ridge,
           unstable, aligned_rows<T>(s.data, s.row_stride), squares, factors);
  });
}

void single_weight_predict(const SnapshotView& s, bool increments, const double* squares,
                           const double* factors, const double* horizons, int64_t n_horizons,
                           void* out, int64_t out_stride, void* stream) {
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    const bool aligned = aligned_rows<T>(s.data, s.row_stride) && aligned_rows<T>(out, out_stride);
    launch({grid_of(s.n), kThreads, stream}, single_weight_predict_kernel<T>, s, increments,
           squares, factors, horizons, n_horizons, aligned, static_cast<T*>(out), out_stride);
  });
}

}  // namespace koopfast::cuda
