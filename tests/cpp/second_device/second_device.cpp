// SPDX-License-Identifier: BSD-3-Clause
// A second device for torch, made of host memory, so that tests can tell what lies on "the device"
// from what lies on the host where there is no accelerator. Every operator runs as on the CPU, on
// the same memory; operands of both sides in one operator are an error, as they are on a GPU.

#include <torch/library.h>

#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_copy_from_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>

#include <cstdlib>

namespace {

constexpr auto kHere = c10::DispatchKey::PrivateUse1;

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    return {data, data, &std::free, c10::Device(c10::DeviceType::PrivateUse1, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
HostMemory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

bool is_here(const at::Tensor& t) { return t.defined() && t.is_privateuseone(); }

// The same memory as a tensor of the CPU.
at::Tensor as_host(const at::Tensor& t) {
  auto options = t.options().device(at::kCPU);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  auto host = at::from_blob(t.mutable_data_ptr(), t.sizes(), t.strides(), options);
  return t.is_conj() ? host.conj() : host;
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(kHere),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(kHere),
                                           c10::dtype_or_default(dtype));
}

at::Tensor as_device(const at::Tensor& host) {
  auto made = empty_strided(host.sizes(), host.strides(), host.scalar_type(), {}, {}, {});
  if (host.numel() > 0) as_host(made).copy_(host);
  return made;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto target = is_here(to) ? as_host(to) : to;
  target.copy_(is_here(from) ? as_host(from) : from);
  return to;
}

struct Operand {
  at::Tensor device, host;
  bool out;  // to be resized and filled
};

void on_the_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const size_t begin = stack->size() - arguments.size();
  std::vector<Operand> operands;
  bool foreign = false;
  auto converted = [&](const at::Tensor& t, bool out) {
    if (!is_here(t)) {
      foreign |= t.defined() && t.dim() > 0 && t.is_cpu();
      return t;
    }
    auto host = out ? at::empty({0}, t.options().device(at::kCPU)) : as_host(t);
    operands.push_back({t, host, out});
    return host;
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[begin + i];
    const bool out = arguments[i].is_out();
    if (value.isTensor()) {
      value = converted(value.toTensor(), out);
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(converted(t, out));
      value = c10::IValue(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> t : value.toOptionalTensorList())
        list.push_back(t ? std::optional<at::Tensor>(converted(*t, false)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
  }
  // Indices may lie on the host, as on a GPU.
  const std::string name = op.schema().name();
  TORCH_CHECK(!foreign || operands.empty() || name.find("index") != std::string::npos, name,
              ": expected all tensors on one device, got some on the cpu and some elsewhere");
  op.callBoxed(stack);
  for (const auto& [device, host, out] : operands) {
    if (!out) continue;
    if (device.sizes() != host.sizes())
      at::native::resize_impl_cpu_(device.unsafeGetTensorImpl(), host.sizes(), host.strides());
    as_host(device).copy_(host);
  }
  auto back = [&](const at::Tensor& made) -> at::Tensor {
    for (const auto& [device, host, out] : operands)
      if (host.is_same(made)) return device;
    return made.defined() ? as_device(made) : made;
  };
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = back(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& t : value.toTensorVector()) list.push_back(back(t));
      value = c10::IValue(list);
    }
  }
}

at::Scalar scalar(const at::Tensor& t) { return as_host(t).item(); }

const at::Tensor& resize(const at::Tensor& t, c10::IntArrayRef size,
                         std::optional<at::MemoryFormat> format) {
  at::native::resize_impl_cpu_(t.unsafeGetTensorImpl(), size, std::nullopt);
  if (format) t.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return t;
}

at::Tensor& set_storage(at::Tensor& t, at::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(t, std::move(source), offset, size, stride);
}

at::Tensor& set_whole_storage(at::Tensor& t, at::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / t.itemsize());
  return set_storage(t, std::move(source), 0, {count}, {1});
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &scalar);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>());
}

}  // namespace
