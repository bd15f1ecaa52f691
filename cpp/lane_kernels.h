// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <new>

// Dense algebra of eight small matrices at a time, compiled once per instruction set. Eight blocks
// stand side by side: entry (i, j) of a row-major matrix of lane l is at [(i * columns + j) * 8 +
// l] of a LaneArray. What a lane holds never reaches another one. Bit l of a returned mask stands
// for lane l.
namespace koopfast {

constexpr int kLaneCount = 8;
// Beyond this order, matrices of eight lanes leave the cache, and one at a time does as well.
constexpr int64_t kMostLaneOrder = 64;

// Aligned to a vector of doubles; with one lane an ordinary array. Holds nothing before it is
// written or cleared.
class LaneArray {
 public:
  explicit LaneArray(int64_t entries, int lanes = kLaneCount);
  ~LaneArray();
  LaneArray(const LaneArray&) = delete;
  LaneArray& operator=(const LaneArray&) = delete;

  void clear();  // zeros
  int lanes() const { return lanes_; }
  double* data() { return data_; }
  const double* data() const { return data_; }
  double& at(int64_t entry, int lane) { return data_[entry * lanes_ + lane]; }
  double at(int64_t entry, int lane) const { return data_[entry * lanes_ + lane]; }

 private:
  double* data_;
  int64_t entries_;
  int lanes_;
};

// One row-major (rows, columns) matrix a lane, rows `ld` doubles apart, side by side into `out`.
// Returns the lanes in which all is finite.
unsigned lane_gather(const double* const* matrices, int rows, int columns, int64_t ld, double* out);

// The way back: each lane's entries, one after another, to outs[l]; none where that is null.
void lane_scatter(const double* a, int64_t entries, double* const* outs);

// The lanes in which all of these entries are finite.
unsigned lane_finite(const double* a, int64_t entries);

// Entries times the lane's factor; zeros, whatever stands there, where that is zero.
void lane_scale(const double* factors, int64_t entries, double* a);

// math/symmetric_eigen.h, for the lanes of two arrays together (the second may be the first again).
// Eigenvalues (n,), largest first; what lane_leading_eigenvectors goes on from stays in `state`,
// lane_eigen_state entries. Those that have converged, the second one's from bit kLaneCount on.
int64_t lane_eigen_state(int n);
unsigned lane_eigenvalues(const double* low, const double* high, int n, double* low_values,
                          double* high_values, double* state);

// Eigenvectors (n, count) of each lane's first `wanted` eigenvalues, zeros behind them; once for a
// state. `work` holds lane_leading_workspace entries.
int64_t lane_leading_workspace(int n, int count);
unsigned lane_leading_eigenvectors(double* state, int n, int count, const double* low_wanted,
                                   const double* high_wanted, double* low_vectors,
                                   double* high_vectors, double* work);

// math/cholesky.h: G^-1 into `out` and a bound on each lane's condition number.
void lane_invert_definite(double* g, int n, double* out, double* work, double* condition);

// math/small_matrix.h.
void lane_multiply(const double* a, const double* b, int rows, int inner, int columns, double* out);

// A^T B of (inner, rows) and (inner, columns).
void lane_multiply_transposed(const double* a, const double* b, int rows, int inner, int columns,
                              double* out);

void lane_divide_nearly_diagonal(const double* b, const double* d, const double* inverse, int rows,
                                 int k, double* out, double* work);

// math/stability.h; the lanes that are certain. `work` holds 2 k*k entries.
unsigned lane_certainly_stable(const double* a, int k, double* work);

// math/power_by_squaring.h. `work` holds 2 k*k + 2 k entries.
void lane_power(const double* a, const double* v, int k, const uint64_t* exponents, int64_t count,
                bool sums, double* out, double* work);

}  // namespace koopfast
