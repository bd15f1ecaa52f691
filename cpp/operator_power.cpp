// SPDX-License-Identifier: BSD-3-Clause
#include "operator_power.h"

#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "math/power_by_squaring.h"
#include "math/spectral_factor.h"
#include "motion.h"
#include "parallel.h"
#include "solvers/solvers.h"
#include "tiles.h"

namespace koopfast {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// Combining is bound by reading the snapshots: chunks only have to be many enough to share out.
constexpr int64_t kCombineChunks = 1024;

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ComplexRowMajor =
    Eigen::Matrix<std::complex<double>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

const std::complex<double>* as_complex(const double* pairs) {
  return reinterpret_cast<const std::complex<double>*>(pairs);
}

// f_T(A) z, (k,), for one block and horizons T > 0.
class BlockPower {
 public:
  BlockPower(const FittedBlocks& fits, int64_t i)
      : increments_(fits.increments[i] != 0),
        diagonal_(fits.diagonal[i] != 0),
        k_(static_cast<int>(fits.rank[i])),
        op_(fits.operators + fits.matrix_offsets[i], k_, k_),
        start_(fits.start + fits.vector_offsets[i], k_),
        values_(as_complex(fits.eigenvalues + 2 * fits.vector_offsets[i]), k_),
        vectors_(as_complex(fits.eigenvectors + 2 * fits.matrix_offsets[i]), k_, k_),
        amplitudes_(as_complex(fits.amplitudes + 2 * fits.vector_offsets[i]), k_) {}

  Vector operator()(double horizon) const {
    return diagonal_ ? by_eigenbasis(horizon) : by_squaring(horizon);
  }

  // Between the last snapshot and one interval after it, a state has no power worth having: that of
  // a fast mode, lambda^(T-1), grows without bound.
  bool interpolates_from_now(double horizon) const { return !increments_ && horizon < 1; }

 private:
  Vector by_eigenbasis(double horizon) const {
    ComplexVector factors(k_);
    for (int i = 0; i < k_; ++i) {
      const Complex lambda{values_(i).real(), values_(i).imag()};
      const Complex f =
          increments_ ? geometric_sum(lambda, horizon) : spectral_power(lambda, horizon);
      factors(i) = std::complex<double>(f.re, f.im) * amplitudes_(i);
    }
    return (vectors_ * factors).real();
  }

  // Whole horizons by repeated squaring, the others linearly in between.
  Vector by_squaring(double horizon) const {
    if (std::isinf(horizon)) return limit();
    const double low = std::floor(horizon);
    const uint64_t steps = static_cast<uint64_t>(increments_ ? low : low - 1);
    Vector power(k_), sum(k_);
    std::vector<double> work(2 * k_ * k_ + 3 * k_);
    power_by_squaring(op_.data(), start_.data(), k_, steps, power.data(), sum.data(), work.data());
    if (!increments_) sum = power;
    if (horizon == low) return sum;
    const Vector next = increments_ ? Vector(op_ * sum + start_) : Vector(op_ * power);
    return sum + (horizon - low) * (next - sum);
  }

  Vector limit() const {
    if (!(values_.cwiseAbs().maxCoeff() < 1 - kUnitEigenvalueTolerance))
      return Vector::Constant(k_, kNaN);
    if (!increments_) return Vector::Zero(k_);
    return (Matrix::Identity(k_, k_) - op_).partialPivLu().solve(start_);
  }

  bool increments_, diagonal_;
  int k_;
  Eigen::Map<const RowMajor> op_;
  Eigen::Map<const Vector> start_;
  Eigen::Map<const ComplexVector> values_;
  Eigen::Map<const ComplexRowMajor> vectors_;
  Eigen::Map<const ComplexVector> amplitudes_;
};

}  // namespace

void operator_power(const FittedBlocks& fits, const int64_t* row_counts, int64_t count, bool dual,
                    const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                    double* values, double* base, int threads) {
  parallel_for(count, threads, [&](int64_t i) {
    const int64_t rows = row_counts[i];
    const auto status = static_cast<BlockStatus>(fits.status[i]);
    const bool increments = fits.increments[i] != 0;
    const BlockPower power(fits, i);
    const Eigen::Map<const Vector> origin(fits.origins + fits.origin_offsets[i], rows);
    const Eigen::Map<const RowMajor> lift(fits.lifts + fits.lift_offsets[i], rows, fits.rank[i]);
    for (int64_t h = 0; h < n_horizons; ++h) {
      Eigen::Map<Vector> out(values + value_offsets[i] + h * rows, rows);
      double& own_base = base[i * n_horizons + h];
      double horizon = horizons[h];
      if (status != BlockStatus::ok || horizon == 0) {
        out.setZero();
        own_base = status == BlockStatus::non_finite ? kNaN : 1.0;
        continue;
      }
      horizon = in_groups(horizon, fits.block_average[i]);
      // The share of what stands for now, w_last and the origin: all of it under increments, else
      // only while interpolating from it.
      double share_of_now = increments ? 1.0 : 0.0, share = 1.0;
      if (power.interpolates_from_now(horizon)) {
        share = horizon;
        share_of_now = 1 - horizon;
        horizon = 1;
      }
      out.noalias() = share * (lift * power(horizon));
      // Coefficients of states stand for whole weights: what they sum to belongs to w_last.
      own_base = share_of_now + (dual && !increments ? out.sum() : 0.0);
      if (fits.block_average[i] > 1) out += share_of_now * origin;
    }
  });
}

void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
             bool dual, const double* base, const int64_t* value_offsets, const double* values,
             int64_t n_horizons, void* out, int64_t out_stride, int threads) {
  const std::vector<Chunk> chunks = cut_blocks(table, blocks, count, kCombineChunks);
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(static_cast<int64_t>(chunks.size()), threads, [&](int64_t c) {
      const Chunk& chunk = chunks[c];
      const int64_t rows = dual ? s.m : table.block_size(chunk.block);
      const double* own = values + value_offsets[chunk.position];
      const double* own_base = base + chunk.position * n_horizons;
      double sums[kHorizonGroup * kTileColumns];
      table.for_each_run(
          chunk.block, chunk.begin, chunk.end, [&](int64_t flat, int64_t column, int64_t length) {
            for (int64_t i = 0; i < length; i += kTileColumns) {
              const int64_t width = std::min(kTileColumns, length - i);
              const T* last = s.row<T>(s.m - 1) + flat + i;
              for (int64_t h = 0; h < n_horizons; h += kHorizonGroup) {
                const int64_t group = std::min(kHorizonGroup, n_horizons - h);
                if (dual) {
                  std::fill_n(sums, group * kTileColumns, 0.0);
                  const WeightedRows<T> weighted{
                      s.row<T>(0) + flat + i, s.row_stride, s.m - 1, last, own + h * rows, rows};
                  add_weighted_differences(weighted, group, width, sums, kTileColumns);
                }
                for (int64_t g = 0; g < group; ++g) {
                  // Primal values are the weights themselves.
                  const double* change =
                      dual ? sums + g * kTileColumns : own + (h + g) * rows + column + i;
                  const double share = own_base[h + g];
                  T* row = static_cast<T*>(out) + (h + g) * out_stride + flat + i;
                  for (int64_t j = 0; j < width; ++j) {
                    // What does not move keeps its bits, the sign of zero included.
                    if (share == 1 && change[j] == 0)
                      row[j] = last[j];
                    else
                      narrow((share == 0 ? 0.0 : share * widen(last[j])) + change[j], row[j]);
                  }
                }
              }
            }
          });
    });
  });
}

}  // namespace koopfast
