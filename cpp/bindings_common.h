// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <pybind11/pybind11.h>

#include "block_table.h"
#include "check.h"
#include "moment_stream.h"
#include "operator_fit.h"
#include "operator_power.h"
#include "tensor_view.h"

// Addresses and tuples of numbers, as `_ops.py` makes them, to what they stand for.
namespace koopfast {

namespace py = pybind11;

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline SnapshotView snapshots_from(const py::tuple& view) {
  const SnapshotView s{at<const void>(view[0].cast<Address>()),
                       static_cast<ScalarType>(view[1].cast<int>()), view[2].cast<int64_t>(),
                       view[3].cast<int64_t>(), view[4].cast<int64_t>()};
  KF_CHECK(s.m >= 1 && s.n >= 1 && s.row_stride >= s.n, "snapshot view out of shape");
  return s;
}

inline BlockTable table_from(const py::tuple& table) {
  return {at<const int64_t>(table[0].cast<Address>()), at<const int64_t>(table[1].cast<Address>()),
          at<const int64_t>(table[2].cast<Address>()), at<const int64_t>(table[3].cast<Address>())};
}

inline FitOptions options_from(const py::tuple& o) {
  FitOptions options{};
  options.increments = o[0].cast<bool>();
  options.delays = o[1].cast<int64_t>();
  options.block_average = o[2].cast<int64_t>();
  options.chosen = o[3].cast<int>();
  options.rank_rule = static_cast<RankRule>(o[4].cast<int>());
  options.energy = o[5].cast<double>();
  options.tolerance = o[6].cast<double>();
  options.ridge = o[7].cast<double>();
  options.estimator = static_cast<Estimator>(o[8].cast<int>());
  options.unstable = static_cast<Unstable>(o[9].cast<int>());
  options.accurate = o[10].cast<bool>();
  return options;
}

inline OperatorArrays arrays_from(const py::tuple& a) {
  const auto p = [&](size_t i) { return a[i].cast<Address>(); };
  return {at<const int64_t>(p(0)), at<const int64_t>(p(1)), at<const int64_t>(p(2)),
          at<int64_t>(p(3)),       at<int32_t>(p(4)),       at<int64_t>(p(5)),
          at<int32_t>(p(6)),       at<double>(p(7)),        at<double>(p(8)),
          at<int32_t>(p(9)),       at<int64_t>(p(10)),      at<int64_t>(p(11)),
          at<int32_t>(p(12)),      at<double>(p(13)),       at<const int64_t>(p(14)),
          at<double>(p(15)),       at<double>(p(16)),       at<double>(p(17)),
          at<double>(p(18)),       at<double>(p(19)),       at<double>(p(20)),
          at<double>(p(21)),       at<double>(p(22)),       at<double>(p(23))};
}

// (head, recent, folded, increments, delays, lag offsets, sum offsets, lags, sums)
inline MomentStream stream_from(const py::tuple& m) {
  const auto p = [&](size_t i) { return m[i].cast<Address>(); };
  const MomentStream stream{snapshots_from(m[0]),    snapshots_from(m[1]), m[2].cast<int64_t>(),
                            m[3].cast<bool>(),       m[4].cast<int64_t>(), at<const int64_t>(p(5)),
                            at<const int64_t>(p(6)), at<double>(p(7)),     at<double>(p(8))};
  KF_CHECK(stream.delays >= 1 && (stream.folded == 0 || stream.folded > 2 * stream.delays),
           "moments folded too early");
  return stream;
}

inline FittedBlocks fitted(const OperatorArrays& a) {
  return {a.vector_offsets, a.matrix_offsets, a.lift_offsets,   a.status,    a.rank,  a.spectrum,
          a.increments,     a.block_average,  a.origin_offsets, a.operators, a.start, a.lifts,
          a.origins,        a.eigenvalues,    a.eigenvectors,   a.amplitudes};
}

}  // namespace koopfast
