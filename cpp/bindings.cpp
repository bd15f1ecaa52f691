// SPDX-License-Identifier: BSD-3-Clause
// Pointers and sizes in, call, out. The Python layer (`_ops.py`) allocates every array and has
// checked shapes, types and devices before it calls. bindings_cuda.cpp has the device's share.
#include <omp.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bindings_common.h"
#include "bindings_cuda.h"
#include "moment_stream.h"
#include "moments.h"
#include "operator_fit.h"
#include "operator_lanes.h"
#include "operator_power.h"
#include "operator_spectrum.h"
#include "single_weights.h"
#include "snapshot_svd.h"
#include "tile_kernels.h"

using namespace koopfast;

namespace {

void bind_snapshot_svd(py::module_& m) {
  m.def(
      "snapshot_gram",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         int rows, Address grams, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        snapshot_gram(s, t, at<int64_t>(blocks), count, static_cast<SnapshotRows>(rows),
                      at<double>(grams), threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks").noconvert(), py::arg("count"),
      py::arg("rows"), py::arg("grams"), py::arg("threads"));
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
         Address out, int64_t out_stride, int threads) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        combine(s, t, at<int64_t>(blocks), count, dual, at<double>(base),
                at<int64_t>(value_offsets), at<double>(values), n_horizons, at<void>(out),
                out_stride, threads);
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"), py::arg("dual"),
      py::arg("base"), py::arg("value_offsets"), py::arg("values"), py::arg("n_horizons"),
      py::arg("out"), py::arg("out_stride"), py::arg("threads"));
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
      "operator_bound",
      [](const py::tuple& arrays, Address rows, int64_t count, int unstable, int threads) {
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        move_spectra(a, at<int64_t>(rows), count, static_cast<Unstable>(unstable), threads);
      },
      py::arg("arrays"), py::arg("rows"), py::arg("count"), py::arg("unstable"),
      py::arg("threads"));
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
  bind_cuda(m);
  m.def("build_info", &build_info);
  m.def("isa", [] { return std::string(instruction_set()); });
  m.attr("cuda_compiled") = KOOPFAST_CUDA_ENABLED != 0;
  m.attr("__all__") = py::list(py::make_tuple(
      "build_info", "combine", "cuda_bound_spectra", "cuda_bound_spectra_workspace", "cuda_combine",
      "cuda_compiled", "cuda_failure", "cuda_fold_moments", "cuda_operator_fit",
      "cuda_operator_fit_workspace", "cuda_operator_power", "cuda_operator_power_workspace",
      "cuda_single_weight_fit", "cuda_single_weight_predict", "cuda_snapshot_gram",
      "cuda_snapshot_moments", "cuda_use", "fold_moments", "gram_svd", "isa", "moment_fit",
      "operator_bound", "operator_fit", "operator_fit_grams", "operator_fit_moments",
      "operator_fit_primal", "operator_power", "operator_spectrum", "single_weight_fit",
      "single_weight_predict", "snapshot_gram", "snapshot_moments", "snapshot_qr"));
}
