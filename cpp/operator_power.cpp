// SPDX-License-Identifier: BSD-3-Clause
#include "operator_power.h"

#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <tuple>
#include <vector>

#include "fresh_pages.h"
#include "lane_groups.h"
#include "lane_kernels.h"
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
// Sums of a stripe, shared by its horizons: 32 KiB. A row's part of it is as long as a page or two,
// so that the processor sees what comes next.
constexpr int64_t kStripe = 4096;

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
        spectrum_(static_cast<Spectrum>(fits.spectrum[i])),
        k_(static_cast<int>(fits.rank[i])),
        op_(fits.operators + fits.matrix_offsets[i], k_, k_),
        start_(fits.start + fits.vector_offsets[i], k_),
        values_(as_complex(fits.eigenvalues + 2 * fits.vector_offsets[i]), k_),
        vectors_(as_complex(fits.eigenvectors + 2 * fits.matrix_offsets[i]), k_, k_),
        amplitudes_(as_complex(fits.amplitudes + 2 * fits.vector_offsets[i]), k_) {}

  Vector operator()(double horizon) const {
    if (spectrum_ == Spectrum::usable) return by_eigenbasis(horizon);
    const bool whole = horizon == std::floor(horizon) && !std::isinf(horizon);
    if (spectrum_ == Spectrum::later_usable && !whole) return by_eigenbasis(horizon);
    return by_squaring(horizon);
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
    const Vector power = squared(steps);
    if (horizon == low) return power;
    Vector next = op_ * power;
    if (increments_) next += start_;
    return power + (horizon - low) * (next - power);
  }

  // In the arithmetic of eight lanes, where others of its size are raised in it: the same bits.
  Vector squared(uint64_t steps) const {
    const int lanes = k_ <= kMostLaneOrder ? kLaneCount : 1;
    LaneArray op(k_ * k_, lanes), start(k_, lanes), power(k_, lanes);
    LaneArray work(2 * k_ * k_ + 2 * k_, lanes);
    op.clear();
    start.clear();
    for (int i = 0; i < k_ * k_; ++i) op.at(i, 0) = op_.data()[i];
    for (int i = 0; i < k_; ++i) start.at(i, 0) = start_(i);
    if (lanes > 1)
      lane_power(op.data(), start.data(), k_, &steps, 1, increments_, power.data(), work.data());
    else
      power_by_squaring(op.data(), start.data(), k_, &steps, 1, increments_, power.data(),
                        work.data());
    Vector out(k_);
    for (int i = 0; i < k_; ++i) out(i) = power.at(i, 0);
    return out;
  }

  Vector limit() const {
    if (!(values_.cwiseAbs().maxCoeff() < 1 - kUnitEigenvalueTolerance))
      return Vector::Constant(k_, kNaN);
    if (!increments_) return Vector::Zero(k_);
    return (Matrix::Identity(k_, k_) - op_).partialPivLu().solve(start_);
  }

  bool increments_;
  Spectrum spectrum_;
  int k_;
  Eigen::Map<const RowMajor> op_;
  Eigen::Map<const Vector> start_;
  Eigen::Map<const ComplexVector> values_;
  Eigen::Map<const ComplexRowMajor> vectors_;
  Eigen::Map<const ComplexVector> amplitudes_;
};

// Whether a block predicts these horizons by squaring alone, like its neighbours.
bool by_squaring_alone(const FittedBlocks& fits, int64_t i, bool whole) {
  const auto spectrum = static_cast<Spectrum>(fits.spectrum[i]);
  return static_cast<BlockStatus>(fits.status[i]) == BlockStatus::ok && whole &&
         fits.rank[i] <= kMostLaneOrder && spectrum != Spectrum::usable &&
         fits.block_average[i] == 1;
}

void power_alone(const FittedBlocks& fits, int64_t i, int64_t rows, bool dual,
                 const double* horizons, int64_t n_horizons, double* values, double* base) {
  const auto status = static_cast<BlockStatus>(fits.status[i]);
  const bool increments = fits.increments[i] != 0;
  const BlockPower power(fits, i);
  const Eigen::Map<const Vector> origin(fits.origins + fits.origin_offsets[i], rows);
  const Eigen::Map<const RowMajor> lift(fits.lifts + fits.lift_offsets[i], rows, fits.rank[i]);
  for (int64_t h = 0; h < n_horizons; ++h) {
    Eigen::Map<Vector> out(values + h * rows, rows);
    double horizon = horizons[h];
    if (status != BlockStatus::ok || horizon == 0) {
      out.setZero();
      base[h] = status == BlockStatus::non_finite ? kNaN : 1.0;
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
    base[h] = share_of_now + (dual && !increments ? out.sum() : 0.0);
    if (fits.block_average[i] > 1) out += share_of_now * origin;
  }
}

// Up to eight blocks of one rank and number of rows, at whole horizons.
void power_together(const FittedBlocks& fits, const int64_t* blocks, int lanes, int64_t rows,
                    bool dual, const double* horizons, int64_t n_horizons,
                    const int64_t* value_offsets, double* values, double* base) {
  const int k = static_cast<int>(fits.rank[blocks[0]]);
  const bool increments = fits.increments[blocks[0]] != 0;
  std::vector<uint64_t> exponents;
  for (int64_t h = 0; h < n_horizons; ++h)
    exponents.push_back(
        static_cast<uint64_t>(horizons[h] - (increments || horizons[h] == 0 ? 0 : 1)));
  LaneArray op(k * k), start(k), powers(n_horizons * k), work(2 * k * k + 2 * k);
  const double *ops[kLaneCount], *starts[kLaneCount];
  for (int l = 0; l < kLaneCount; ++l) {  // lanes to spare repeat the first block
    const int64_t own = blocks[l < lanes ? l : 0];
    ops[l] = fits.operators + fits.matrix_offsets[own];
    starts[l] = fits.start + fits.vector_offsets[own];
  }
  lane_gather(ops, k, k, k, op.data());
  lane_gather(starts, 1, k, k, start.data());
  lane_power(op.data(), start.data(), k, exponents.data(), n_horizons, increments, powers.data(),
             work.data());
  Vector power(k);
  for (int l = 0; l < lanes; ++l) {
    const Eigen::Map<const RowMajor> lift(fits.lifts + fits.lift_offsets[blocks[l]], rows, k);
    for (int64_t h = 0; h < n_horizons; ++h) {
      Eigen::Map<Vector> out(values + value_offsets[blocks[l]] + h * rows, rows);
      double& own_base = base[blocks[l] * n_horizons + h];
      if (horizons[h] == 0) {
        out.setZero();
        own_base = 1;
        continue;
      }
      for (int i = 0; i < k; ++i) power(i) = powers.at(h * k + i, l);
      out.noalias() = lift * power;
      own_base = increments ? 1.0 : dual ? out.sum() : 0.0;
    }
  }
}

}  // namespace

void operator_power(const FittedBlocks& fits, const int64_t* row_counts, int64_t count, bool dual,
                    const double* horizons, int64_t n_horizons, const int64_t* value_offsets,
                    double* values, double* base, int threads) {
  const bool whole = std::all_of(horizons, horizons + n_horizons,
                                 [](double h) { return h == std::floor(h) && !std::isinf(h); });
  // Blocks of one kind, rank and number of rows go eight at a time; rank 0 stands for alone.
  const auto kind = [&](int64_t i) {
    const bool together = by_squaring_alone(fits, i, whole);
    return std::make_tuple(together ? fits.rank[i] : 0, together ? row_counts[i] : i,
                           together && fits.increments[i] != 0);
  };
  const Groups groups = group_by(count, kLaneCount, kind);
  parallel_for(groups.count(), threads, [&](int64_t g) {
    const int64_t* own = groups.order.data() + groups.first[g];
    const int64_t rows = row_counts[own[0]];
    if (std::get<0>(kind(own[0])) == 0)
      power_alone(fits, own[0], rows, dual, horizons, n_horizons, values + value_offsets[own[0]],
                  base + own[0] * n_horizons);
    else
      power_together(fits, own, static_cast<int>(groups.first[g + 1] - groups.first[g]), rows, dual,
                     horizons, n_horizons, value_offsets, values, base);
  });
}

void combine(const SnapshotView& s, const BlockTable& table, const int64_t* blocks, int64_t count,
             bool dual, const double* base, const int64_t* value_offsets, const double* values,
             int64_t n_horizons, void* out, int64_t out_stride, int threads) {
  const std::vector<Chunk> chunks = cut_blocks(table, blocks, count, kCombineChunks);
  expect_writes(out, ((n_horizons - 1) * out_stride + s.n) * size_of(s.dtype));
  dispatch(s.dtype, [&](auto tag) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    parallel_for(static_cast<int64_t>(chunks.size()), threads, [&](int64_t c) {
      const Chunk& chunk = chunks[c];
      const int64_t rows = dual ? s.m : table.block_size(chunk.block);
      const double* own = values + value_offsets[chunk.position];
      const double* own_base = base + chunk.position * n_horizons;
      double sums[kStripe];
      const int64_t stripe = n_horizons == 1 ? kStripe / 2 : kStripe / kHorizonGroup;
      table.for_each_run(
          chunk.block, chunk.begin, chunk.end, [&](int64_t flat, int64_t column, int64_t length) {
            for (int64_t i = 0; i < length; i += stripe) {
              const int64_t width = std::min(stripe, length - i);
              const T* last = s.row<T>(s.m - 1) + flat + i;
              for (int64_t h = 0; h < n_horizons; h += kHorizonGroup) {
                const int64_t group = std::min(kHorizonGroup, n_horizons - h);
                if (dual) {
                  std::fill_n(sums, group * stripe, 0.0);
                  const WeightedRows<T> weighted{
                      s.row<T>(0) + flat + i, s.row_stride, s.m - 1, last, own + h * rows, rows};
                  add_weighted_differences(weighted, group, width, sums, stripe);
                }
                for (int64_t g = 0; g < group; ++g) {
                  // Primal values are the weights themselves.
                  const double* change =
                      dual ? sums + g * stripe : own + (h + g) * rows + column + i;
                  T* row = static_cast<T*>(out) + (h + g) * out_stride + flat + i;
                  write_weights(last, own_base[h + g], change, width, row);
                }
              }
            }
          });
    });
  });
}

}  // namespace koopfast
