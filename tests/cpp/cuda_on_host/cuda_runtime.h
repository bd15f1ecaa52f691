// SPDX-License-Identifier: BSD-3-Clause
// Stands in for CUDA's header so that cuda/*.cu compile for the host: kernels run thread by thread,
// every CUDA thread a fiber that goes on until it meets a barrier or a shuffle. What it finds:
// indices out of bounds (under a sanitizer too), lanes that miss a shuffle, barriers that not all
// reach, wide loads that are not aligned, and, as the order of the threads can be turned round,
// results that depend on it. What it cannot: weak memory order, registers, and time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
// What the next launch is to fail with; asking for it clears it.
inline cudaError_t& pending_error() {
  static cudaError_t error = cudaSuccess;
  return error;
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = pending_error();
  pending_error() = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidConfiguration"; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 1 << 18;

// Those who meet: a warp at a shuffle, a CTA at a barrier. Two sets of slots, used in turn: a lane
// that is ahead must not overwrite what others are yet to read.
struct Meeting {
  unsigned members = 0, arrived = 0;
  unsigned long turn = 0;
  const void* place = nullptr;
  char slots[2][kWarp][16];
};

struct Thread {
  ucontext_t context;  // only to begin with: its switches are system calls
  jmp_buf place;
  bool begun = false;
  dim3 index;
  unsigned lane = 0;
  Meeting* warp = nullptr;
  bool done = false;
  std::unique_ptr<char[]> stack;
};

struct State {
  dim3 grid, block, cta;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  Meeting all;
  Thread* self = nullptr;
  jmp_buf scheduler;
  const std::function<void()>* body = nullptr;
  bool backwards = false;
  bool moved = false;  // whether any thread got on since the last round
};

inline State& state() {
  static State one;
  return one;
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void yield() {
  State& s = state();
  if (_setjmp(s.self->place) == 0) _longjmp(s.scheduler, 1);
}

inline void resume(Thread& t) {
  State& s = state();
  s.self = &t;
  if (_setjmp(s.scheduler) != 0) return;
  if (t.begun) _longjmp(t.place, 1);
  t.begun = true;
  setcontext(&t.context);
}

// Waits for all members; returns the slots to read. `place` tells one kind of meeting from another.
inline int meet(Meeting& meeting, const void* place, unsigned slot, const void* value,
                size_t bytes) {
  const unsigned long turn = meeting.turn;
  if (meeting.arrived > 0 && meeting.place != place) fail("threads meet at different barriers");
  meeting.place = place;
  if (value) std::memcpy(meeting.slots[turn % 2][slot], value, bytes);
  state().moved = true;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.turn;
  } else {
    while (meeting.turn == turn) yield();
  }
  return turn % 2;
}

inline void enter() {
  State& s = state();
  (*s.body)();
  s.self->done = true;
  s.moved = true;
  // A thread that is gone misses every meeting to come.
  yield();
}

inline void run_cta() {
  State& s = state();
  const unsigned count = s.block.x * s.block.y * s.block.z;
  s.warps.assign((count + kWarp - 1) / kWarp, Meeting());
  s.all = Meeting();
  s.all.members = count;
  if (s.threads.size() < count) s.threads.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = s.threads[i];
    t.index = dim3(i % s.block.x, i / s.block.x % s.block.y, i / (s.block.x * s.block.y));
    t.lane = i % kWarp;
    t.warp = &s.warps[i / kWarp];
    ++t.warp->members;
    t.done = t.begun = false;
    if (!t.stack) t.stack.reset(new char[kStack]);
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = kStack;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }
  for (unsigned left = count; left > 0;) {
    s.moved = false;
    left = 0;
    for (unsigned k = 0; k < count; ++k) {
      Thread& t = s.threads[s.backwards ? count - 1 - k : k];
      if (t.done) continue;
      resume(t);
      left += !t.done;
    }
    if (left > 0 && !s.moved) fail("threads wait at a barrier that others never reach");
  }
}

inline void run(dim3 grid, dim3 block, const std::function<void()>& body) {
  State& s = state();
  s.grid = grid;
  s.block = block;
  s.body = &body;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        s.cta = dim3(x, y, z);
        run_cta();
      }
}

template <typename T>
T exchange(const T& value, unsigned source, const void* place) {
  Thread& t = *state().self;
  if (t.warp->members != kWarp) fail("a shuffle in a warp of fewer than 32 lanes");
  if (source >= kWarp) fail("a shuffle from no lane");
  const int turn = meet(*t.warp, place, t.lane, &value, sizeof value);
  T result;
  std::memcpy(&result, t.warp->slots[turn][source], sizeof result);
  return result;
}

}  // namespace emulated

#define threadIdx (emulated::state().self->index)
#define blockIdx (emulated::state().cta)
#define blockDim (emulated::state().block)
#define gridDim (emulated::state().grid)

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  static const char place = 0;
  return emulated::exchange(value, static_cast<unsigned>(source) % emulated::kWarp, &place);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static const char place = 0;
  return emulated::exchange(value, emulated::state().self->lane ^ static_cast<unsigned>(mask),
                            &place);
}

inline void __syncwarp() {
  static const char place = 0;
  emulated::meet(*emulated::state().self->warp, &place, 0, nullptr, 0);
}

inline void __syncthreads() {
  static const char place = 0;
  emulated::meet(emulated::state().all, &place, 0, nullptr, 0);
}

// The tensor cores' product as the PTX manual lays it out over the lanes.
inline void emulated_mma_16x8x8(double (&c)[4], const double (&a)[4], const double (&b)[2]) {
  static const char place = 0;
  const unsigned lane = emulated::state().self->lane, group = lane / 4, within = lane % 4;
  for (unsigned k = 0; k < 8; ++k) {
    double held[4], right[2];
    for (unsigned r = 0; r < 4; ++r) held[r] = emulated::exchange(a[r], 4 * group + k % 4, &place);
    for (unsigned i = 0; i < 2; ++i) {
      const double low = emulated::exchange(b[0], 4 * (2 * within + i) + k % 4, &place);
      const double high = emulated::exchange(b[1], 4 * (2 * within + i) + k % 4, &place);
      right[i] = k < 4 ? low : high;
    }
    for (unsigned i = 0; i < 2; ++i) {
      c[i] += (k < 4 ? held[0] : held[2]) * right[i];
      c[2 + i] += (k < 4 ? held[1] : held[3]) * right[i];
    }
  }
}
