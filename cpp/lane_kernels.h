// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <new>

// Dense algebra of eight small matrices at a time, compiled once per instruction set. Eight blocks
// stand side by side: entry (i, j) of a row-major matrix of lane l is at [(i * columns + j) * 8 +
// l] of a LaneArray. What a lane holds never reaches another one.
namespace koopfast {

constexpr int kLaneCount = 8;
// Beyond this order, matrices of eight lanes leave the cache, and one at a time does as well.
constexpr int64_t kMostLaneOrder = 64;

// Zeros, aligned to a vector of doubles; with one lane an ordinary array.
class LaneArray {
 public:
  explicit LaneArray(int64_t entries, int lanes = kLaneCount);
  ~LaneArray();
  LaneArray(const LaneArray&) = delete;
  LaneArray& operator=(const LaneArray&) = delete;

  double* data() { return data_; }
  double& at(int64_t entry, int lane) { return data_[entry * lanes_ + lane]; }

 private:
  double* data_;
  int lanes_;
};

// Bit l of what these return stands for lane l.

// math/symmetric_eigen.h; the lanes that have converged. `work` holds 2 n entries.
unsigned lane_symmetric_eigen(double* a, int n, double* values, double* vectors, double* work);

// math/cholesky.h: G^-1 into `out` and a bound on each lane's condition number.
void lane_invert_definite(double* g, int n, double* out, double* work, double* condition);

// math/small_matrix.h.
void lane_multiply(const double* a, const double* b, int rows, int inner, int columns, double* out);

void lane_divide_nearly_diagonal(const double* b, const double* d, const double* inverse, int rows,
                                 int k, double* out, double* work);

// math/stability.h; the lanes that are certain. `work` holds 2 k*k entries.
unsigned lane_certainly_stable(const double* a, int k, double* work);

// math/power_by_squaring.h. `work` holds 2 k*k + 2 k entries.
void lane_power(const double* a, const double* v, int k, const uint64_t* exponents, int64_t count,
                bool sums, double* out, double* work);

}  // namespace koopfast
