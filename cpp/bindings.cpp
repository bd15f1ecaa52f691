// SPDX-License-Identifier: BSD-3-Clause
// The only pybind11 file: pointers and sizes in, call, out. The Python layer (`_ops.py`) allocates
// every array and has checked shapes, types and devices before it calls.
#include <omp.h>
#include <pybind11/pybind11.h>

#include <string>

#include "check.h"
#include "moment_stream.h"
#include "moments.h"
#include "operator_fit.h"
#include "operator_lanes.h"
#include "operator_power.h"
#include "operator_spectrum.h"
#include "single_weights.h"
#include "snapshot_svd.h"
#include "tile_kernels.h"

namespace py = pybind11;
using namespace koopfast;

namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

SnapshotView snapshots_from(const py::tuple& view) {
  const SnapshotView s{at<const void>(view[0].cast<Address>()),
                       static_cast<ScalarType>(view[1].cast<int>()), view[2].cast<int64_t>(),
                       view[3].cast<int64_t>(), view[4].cast<int64_t>()};
  KF_CHECK(s.m >= 1 && s.n >= 1 && s.row_stride >= s.n, "snapshot view out of shape");
  return s;
}

BlockTable table_from(const py::tuple& table) {
  return {at<const int64_t>(table[0].cast<Address>()), at<const int64_t>(table[1].cast<Address>()),
          at<const int64_t>(table[2].cast<Address>()), at<const int64_t>(table[3].cast<Address>())};
}

FitOptions options_from(const py::tuple& o) {
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

OperatorArrays arrays_from(const py::tuple& a) {
  const auto p = [&](size_t i) { return a[i].cast<Address>(); };
  return {at<const int64_t>(p(0)), at<const int64_t>(p(1)),  at<const int64_t>(p(2)),
          at<const int64_t>(p(3)), at<int32_t>(p(4)),        at<int64_t>(p(5)),
          at<int32_t>(p(6)),       at<double>(p(7)),         at<double>(p(8)),
          at<int32_t>(p(9)),       at<int64_t>(p(10)),       at<int64_t>(p(11)),
          at<int32_t>(p(12)),      at<const int64_t>(p(13)), at<double>(p(14)),
          at<double>(p(15)),       at<double>(p(16)),        at<double>(p(17)),
          at<double>(p(18)),       at<double>(p(19)),        at<double>(p(20)),
          at<double>(p(21))};
}

// (head, recent, folded, increments, delays, lag offsets, sum offsets, lags, sums)
MomentStream stream_from(const py::tuple& m) {
  const auto p = [&](size_t i) { return m[i].cast<Address>(); };
  const MomentStream stream{snapshots_from(m[0]),    snapshots_from(m[1]), m[2].cast<int64_t>(),
                            m[3].cast<bool>(),       m[4].cast<int64_t>(), at<const int64_t>(p(5)),
                            at<const int64_t>(p(6)), at<double>(p(7)),     at<double>(p(8))};
  KF_CHECK(stream.delays >= 1 && (stream.folded == 0 || stream.folded > 2 * stream.delays),
           "moments folded too early");
  return stream;
}

FittedBlocks fitted(const OperatorArrays& a) {
  return {a.vector_offsets, a.matrix_offsets, a.lift_offsets,   a.status,    a.rank,  a.spectrum,
          a.increments,     a.block_average,  a.origin_offsets, a.operators, a.start, a.lifts,
          a.origins,        a.eigenvalues,    a.eigenvectors,   a.amplitudes};
}

void bind_snapshot_svd(py::module_& m) {
  m.def(
      "snapshot_gram",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         int rows, Address grams, int threads, bool on_device, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        if (!on_device)
          return snapshot_gram(s, t, at<int64_t>(blocks), count, static_cast<SnapshotRows>(rows),
                               at<double>(grams), threads);
        cuda::snapshot_gram(s, t, at<int64_t>(blocks), count, static_cast<SnapshotRows>(rows),
                            at<double>(grams), at<void>(stream));
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks").noconvert(), py::arg("count"),
      py::arg("rows"), py::arg("grams"), py::arg("threads"), py::arg("on_device"),
      py::arg("stream"));
  m.def(
      "gram_svd",
      [](Address grams, Address sizes, int64_t count, int64_t m_, int rows, Address sigma,
         int threads) {
        const py::gil_scoped_release release;
        gram_svd(at<double>(grams), at<int64_t>(sizes), count, m_, static_cast<SnapshotRows>(rows),
                 at<double>(sigma), threads);
      },
      py::arg("grams"), py::arg("sizes"), py::arg("count"), py::arg("m"), py::arg("rows"),
      py::arg("sigma"), py::arg("threads"));
  m.def(
      "snapshot_qr",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         int rows, Address coordinates, Address sigma, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        snapshot_qr(s, t, at<int64_t>(blocks), count, static_cast<SnapshotRows>(rows),
                    at<double>(coordinates), at<double>(sigma), threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"), py::arg("rows"),
      py::arg("coordinates"), py::arg("sigma"), py::arg("threads"));
}

void bind_operator(py::module_& m) {
  m.def(
      "operator_fit",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         bool dual, Address coordinates, const py::tuple& options, const py::tuple& arrays,
         int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        operator_fit(s, t, at<int64_t>(blocks), count, static_cast<BlockForm>(dual),
                     at<double>(coordinates), o, a, threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"), py::arg("dual"),
      py::arg("coordinates"), py::arg("options"), py::arg("arrays"), py::arg("threads"));
  m.def(
      "operator_power",
      [](const py::tuple& arrays, Address row_counts, int64_t count, bool dual, Address horizons,
         int64_t n_horizons, Address value_offsets, Address values, Address base, int threads) {
        const FittedBlocks f = fitted(arrays_from(arrays));
        const py::gil_scoped_release release;
        operator_power(f, at<int64_t>(row_counts), count, dual, at<double>(horizons), n_horizons,
                       at<int64_t>(value_offsets), at<double>(values), at<double>(base), threads);
      },
      py::arg("arrays"), py::arg("row_counts"), py::arg("count"), py::arg("dual"),
      py::arg("horizons"), py::arg("n_horizons"), py::arg("value_offsets"), py::arg("values"),
      py::arg("base"), py::arg("threads"));
  m.def(
      "combine",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         bool dual, Address base, Address value_offsets, Address values, int64_t n_horizons,
         Address out, int64_t out_stride, int threads, bool on_device, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        if (!on_device)
          return combine(s, t, at<int64_t>(blocks), count, dual, at<double>(base),
                         at<int64_t>(value_offsets), at<double>(values), n_horizons, at<void>(out),
                         out_stride, threads);
        cuda::combine(s, t, at<int64_t>(blocks), count, dual, at<double>(base),
                      at<int64_t>(value_offsets), at<double>(values), n_horizons, at<void>(out),
                      out_stride, at<void>(stream));
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"), py::arg("dual"),
      py::arg("base"), py::arg("value_offsets"), py::arg("values"), py::arg("n_horizons"),
      py::arg("out"), py::arg("out_stride"), py::arg("threads"), py::arg("on_device"),
      py::arg("stream"));
}

// The way through second moments: operator_lanes.h.
void bind_moments(py::module_& m) {
  m.def(
      "snapshot_moments",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         bool increments, int64_t delays, bool only_pairs, Address moment_offsets, Address moments,
         Address latest_offsets, Address latest, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        snapshot_moments(s, t, at<int64_t>(blocks), count, increments, delays,
                         static_cast<Moments>(only_pairs), at<int64_t>(moment_offsets),
                         at<double>(moments), at<int64_t>(latest_offsets), at<double>(latest),
                         threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"),
      py::arg("increments"), py::arg("delays"), py::arg("only_pairs"), py::arg("moment_offsets"),
      py::arg("moments"), py::arg("latest_offsets"), py::arg("latest"), py::arg("threads"));
  m.def(
      "operator_fit_moments",
      [](Address moments, Address moment_offsets, Address latest, Address latest_offsets,
         Address sizes, int64_t count, int64_t pairs, const py::tuple& options,
         const py::tuple& arrays, int threads) {
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        operator_fit_moments(at<double>(moments), at<int64_t>(moment_offsets), at<double>(latest),
                             at<int64_t>(latest_offsets), at<int64_t>(sizes), count, pairs, o, a,
                             threads);
      },
      py::arg("moments"), py::arg("moment_offsets"), py::arg("latest"), py::arg("latest_offsets"),
      py::arg("sizes"), py::arg("count"), py::arg("pairs"), py::arg("options"), py::arg("arrays"),
      py::arg("threads"));
  m.def(
      "operator_fit_primal",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         const py::tuple& options, const py::tuple& arrays, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        operator_fit_primal(s, t, at<int64_t>(blocks), count, o, a, threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"),
      py::arg("options"), py::arg("arrays"), py::arg("threads"));
  m.def(
      "operator_fit_grams",
      [](Address grams, Address sizes, int64_t count, int64_t m_, const py::tuple& options,
         const py::tuple& arrays, int threads) {
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        operator_fit_grams(at<double>(grams), at<int64_t>(sizes), count, m_, o, a, threads);
      },
      py::arg("grams"), py::arg("sizes"), py::arg("count"), py::arg("m"), py::arg("options"),
      py::arg("arrays"), py::arg("threads"));
  m.def(
      "operator_spectrum",
      [](const py::tuple& arrays, int64_t count, int threads) {
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        operator_spectrum(a, count, threads);
      },
      py::arg("arrays"), py::arg("count"), py::arg("threads"));
}

void bind_moment_stream(py::module_& m) {
  m.def(
      "fold_moments",
      [](const py::tuple& stream, const py::tuple& table, int64_t n_blocks, int64_t until,
         int threads) {
        const MomentStream s = stream_from(stream);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        fold_moments(s, t, n_blocks, until, threads);
      },
      py::arg("stream"), py::arg("table"), py::arg("n_blocks"), py::arg("until"),
      py::arg("threads"));
  m.def(
      "moment_fit",
      [](const py::tuple& stream, const py::tuple& table, int64_t n_blocks, int64_t tail,
         const py::tuple& options, const py::tuple& arrays, int threads) {
        const MomentStream s = stream_from(stream);
        const BlockTable t = table_from(table);
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        moment_fit(s, t, n_blocks, tail, o, a, threads);
      },
      py::arg("stream"), py::arg("table"), py::arg("n_blocks"), py::arg("tail"), py::arg("options"),
      py::arg("arrays"), py::arg("threads"));
}

void bind_single_weights(py::module_& m) {
  m.def(
      "single_weight_fit",
      [](const py::tuple& snapshots, bool increments, double ridge, int unstable, Address squares,
         Address factors, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const py::gil_scoped_release release;
        single_weight_fit(s, increments, ridge, static_cast<Unstable>(unstable),
                          at<double>(squares), at<double>(factors), threads);
      },
      py::arg("snapshots"), py::arg("increments"), py::arg("ridge"), py::arg("unstable"),
      py::arg("squares"), py::arg("factors"), py::arg("threads"));
  m.def(
      "single_weight_predict",
      [](const py::tuple& snapshots, bool increments, Address squares, Address factors,
         Address horizons, int64_t n_horizons, Address out, int64_t out_stride, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const py::gil_scoped_release release;
        single_weight_predict(s, increments, at<double>(squares), at<double>(factors),
                              at<double>(horizons), n_horizons, at<void>(out), out_stride, threads);
      },
      py::arg("snapshots"), py::arg("increments"), py::arg("squares"), py::arg("factors"),
      py::arg("horizons"), py::arg("n_horizons"), py::arg("out"), py::arg("out_stride"),
      py::arg("threads"));
}

// What was compiled, as text; an empty string where there is none.
py::dict build_info() {
  py::dict info;
  info["version"] = KOOPFAST_VERSION;
  info["compiler"] = KOOPFAST_COMPILER;
  info["build_type"] = KOOPFAST_BUILD_TYPE;
  info["eigen_version"] = KOOPFAST_EIGEN_VERSION;
  info["eigen_dir"] = KOOPFAST_EIGEN_DIR;
  info["openmp"] = std::to_string(_OPENMP);
  info["openmp_max_threads"] = std::to_string(omp_get_max_threads());
  info["cuda_version"] = KOOPFAST_CUDA_VERSION;
  info["cuda_architectures"] = KOOPFAST_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  bind_snapshot_svd(m);
  bind_operator(m);
  bind_moments(m);
  bind_moment_stream(m);
  bind_single_weights(m);
  m.def("build_info", &build_info);
  m.def("isa", [] { return std::string(instruction_set()); });
  m.attr("cuda_compiled") = KOOPFAST_CUDA_ENABLED != 0;
  m.attr("__all__") = py::list(py::make_tuple(
      "build_info", "combine", "cuda_compiled", "fold_moments", "gram_svd", "isa", "moment_fit",
      "operator_fit", "operator_fit_grams", "operator_fit_moments", "operator_fit_primal",
      "operator_power", "operator_spectrum", "single_weight_fit", "single_weight_predict",
      "snapshot_gram", "snapshot_moments", "snapshot_qr"));
}
