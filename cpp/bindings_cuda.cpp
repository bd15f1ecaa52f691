// SPDX-License-Identifier: BSD-3-Clause
// The device's share of the bindings: the same operations, on memory and streams of torch's.
#include "bindings_cuda.h"

#include "bindings_common.h"
#include "chunk_plan.h"
#include "device.h"
#include "moments.h"
#include "operator_power.h"
#include "single_weights.h"
#include "snapshot_svd.h"

namespace koopfast {
namespace {

// (owners, first, steps, slots, shared, chunks, shared blocks)
ChunkPlan plan_from(const py::tuple& p) {
  const auto a = [&](size_t i) { return at<const int64_t>(p[i].cast<Address>()); };
  return {a(0), a(1), a(2), a(3), a(4), p[5].cast<int64_t>(), p[6].cast<int64_t>()};
}

void bind_passes(py::module_& m) {
  m.def(
      "cuda_snapshot_gram",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, const py::tuple& plan,
         int rows, Address grams, Address partials, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const ChunkPlan p = plan_from(plan);
        const py::gil_scoped_release release;
        cuda::snapshot_gram(s, t, at<int64_t>(blocks), p, static_cast<SnapshotRows>(rows),
                            at<double>(grams), at<double>(partials), at<void>(stream));
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks").noconvert(), py::arg("plan"),
      py::arg("rows"), py::arg("grams"), py::arg("partials"), py::arg("stream"));
  m.def(
      "cuda_combine",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, const py::tuple& plan,
         bool dual, Address base, Address value_offsets, Address values, int64_t n_horizons,
         Address out, int64_t out_stride, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const ChunkPlan p = plan_from(plan);
        const py::gil_scoped_release release;
        cuda::combine(s, t, at<int64_t>(blocks), p, dual, at<double>(base),
                      at<int64_t>(value_offsets), at<double>(values), n_horizons, at<void>(out),
                      out_stride, at<void>(stream));
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("plan"), py::arg("dual"),
      py::arg("base"), py::arg("value_offsets"), py::arg("values"), py::arg("n_horizons"),
      py::arg("out"), py::arg("out_stride"), py::arg("stream"));
  m.def("cuda_failure", &cuda::failure, py::arg("device"));
  m.def("cuda_use", &cuda::use, py::arg("device"));
}

// (dual, count, m, pairs, largest order, sizes, source, its offsets, newest, its offsets)
cuda::SmallFits small_fits_from(const py::tuple& f) {
  const auto a = [&](size_t i) { return f[i].cast<Address>(); };
  return {static_cast<BlockForm>(f[0].cast<bool>()),
          f[1].cast<int64_t>(),
          f[2].cast<int64_t>(),
          f[3].cast<int64_t>(),
          f[4].cast<int64_t>(),
          at<const int64_t>(a(5)),
          at<const double>(a(6)),
          at<const int64_t>(a(7)),
          at<const double>(a(8)),
          at<const int64_t>(a(9))};
}

void bind_operators(py::module_& m) {
  m.def("cuda_operator_fit_workspace", &cuda::operator_fit_workspace, py::arg("order"));
  m.def(
      "cuda_operator_fit",
      [](const py::tuple& fits, const py::tuple& options, const py::tuple& arrays,
         Address workspace, int64_t teams, Address stream) {
        const cuda::SmallFits f = small_fits_from(fits);
        const FitOptions o = options_from(options);
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        cuda::operator_fit(f, o, a, at<double>(workspace), teams, at<void>(stream));
      },
      py::arg("fits"), py::arg("options"), py::arg("arrays"), py::arg("workspace"),
      py::arg("teams"), py::arg("stream"));
  m.def("cuda_bound_spectra_workspace", &cuda::bound_spectra_workspace, py::arg("most_rank"));
  m.def(
      "cuda_bound_spectra",
      [](const py::tuple& arrays, Address rows, int64_t count, int unstable, int64_t most_rank,
         Address workspace, int64_t teams, Address stream) {
        const OperatorArrays a = arrays_from(arrays);
        const py::gil_scoped_release release;
        cuda::bound_spectra(a, at<int64_t>(rows), count, static_cast<Unstable>(unstable), most_rank,
                            at<double>(workspace), teams, at<void>(stream));
      },
      py::arg("arrays"), py::arg("rows"), py::arg("count"), py::arg("unstable"),
      py::arg("most_rank"), py::arg("workspace"), py::arg("teams"), py::arg("stream"));
  m.def("cuda_operator_power_workspace", &cuda::operator_power_workspace, py::arg("rank"),
        py::arg("n_horizons"));
  m.def(
      "cuda_operator_power",
      [](const py::tuple& arrays, Address row_counts, int64_t count, bool dual, Address horizons,
         int64_t n_horizons, Address value_offsets, Address values, Address base, int64_t most_rank,
         Address workspace, int64_t teams, Address stream) {
        const FittedBlocks f = fitted(arrays_from(arrays));
        const py::gil_scoped_release release;
        cuda::operator_power(f, at<int64_t>(row_counts), count, dual, at<double>(horizons),
                             n_horizons, at<int64_t>(value_offsets), at<double>(values),
                             at<double>(base), most_rank, at<double>(workspace), teams,
                             at<void>(stream));
      },
      py::arg("arrays"), py::arg("row_counts"), py::arg("count"), py::arg("dual"),
      py::arg("horizons"), py::arg("n_horizons"), py::arg("value_offsets"), py::arg("values"),
      py::arg("base"), py::arg("most_rank"), py::arg("workspace"), py::arg("teams"),
      py::arg("stream"));
}

void bind_small_blocks(py::module_& m) {
  m.def(
      "cuda_snapshot_moments",
      [](const py::tuple& snapshots, const py::tuple& table, Address blocks, int64_t count,
         bool increments, int64_t delays, Address moment_offsets, Address moments,
         Address latest_offsets, Address latest, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        cuda::snapshot_moments(s, t, at<int64_t>(blocks), count, increments, delays,
                               at<int64_t>(moment_offsets), at<double>(moments),
                               at<int64_t>(latest_offsets), at<double>(latest), at<void>(stream));
      },
      py::arg("snapshots"), py::arg("table"), py::arg("blocks"), py::arg("count"),
      py::arg("increments"), py::arg("delays"), py::arg("moment_offsets"), py::arg("moments"),
      py::arg("latest_offsets"), py::arg("latest"), py::arg("stream"));
  m.def(
      "cuda_fold_moments",
      [](const py::tuple& stream, const py::tuple& table, int64_t n_blocks, int64_t until,
         Address on) {
        const MomentStream s = stream_from(stream);
        const BlockTable t = table_from(table);
        const py::gil_scoped_release release;
        cuda::fold_moments(s, t, n_blocks, until, at<void>(on));
      },
      py::arg("stream"), py::arg("table"), py::arg("n_blocks"), py::arg("until"), py::arg("on"));
  m.def(
      "cuda_single_weight_fit",
      [](const py::tuple& snapshots, bool increments, double ridge, int unstable, Address squares,
         Address factors, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const py::gil_scoped_release release;
        cuda::single_weight_fit(s, increments, ridge, static_cast<Unstable>(unstable),
                                at<double>(squares), at<double>(factors), at<void>(stream));
      },
      py::arg("snapshots"), py::arg("increments"), py::arg("ridge"), py::arg("unstable"),
      py::arg("squares"), py::arg("factors"), py::arg("stream"));
  m.def(
      "cuda_single_weight_predict",
      [](const py::tuple& snapshots, bool increments, Address squares, Address factors,
         Address horizons, int64_t n_horizons, Address out, int64_t out_stride, Address stream) {
        const SnapshotView s = snapshots_from(snapshots);
        const py::gil_scoped_release release;
        cuda::single_weight_predict(s, increments, at<double>(squares), at<double>(factors),
                                    at<double>(horizons), n_horizons, at<void>(out), out_stride,
                                    at<void>(stream));
      },
      py::arg("snapshots"), py::arg("increments"), py::arg("squares"), py::arg("factors"),
      py::arg("horizons"), py::arg("n_horizons"), py::arg("out"), py::arg("out_stride"),
      py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_passes(m);
  bind_operators(m);
  bind_small_blocks(m);
}

}  // namespace koopfast
