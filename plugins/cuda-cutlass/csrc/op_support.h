// What the ops share: argument checks in words, the device guard, the current stream, launches.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ceil_div.h"

namespace qcore_cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Text of what a message is made of. No stream: those carry a locale, which may be that of another C++
// library in the process.
inline std::string to_text(const std::string& text) { return text; }
inline std::string to_text(const char* text) { return text; }
template <typename Number>
std::string to_text(Number number) {
  return std::to_string(number);
}

// Fails with a message made of the arguments, and nothing about where in the source that was.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw std::runtime_error((std::string() + ... + to_text(parts)));
}
#define QCORE_CHECK(condition, ...)                   \
  do {                                                \
    if (!(condition)) ::qcore_cuda::fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_text(const int64_t* sizes, int64_t dim) {
  std::string text = "[";
  for (int64_t i = 0; i < dim; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::string shape_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return shape_text(sizes.data(), t.dim());
}

// What `scalar_type` of the Stable ABI is, and also for dtypes that torch 2.10 did not know in it (e8m0):
// for those it throws, with a message made by a stream.
inline ScalarType dtype_of(const Tensor& t) {
  int32_t dtype = -1;
  QCORE_CHECK(aoti_torch_get_dtype(t.get(), &dtype) == AOTI_TORCH_SUCCESS, "a tensor has no dtype");
  return static_cast<ScalarType>(dtype);  // the ABI's numbers are those of the enumeration
}

inline const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

inline void check_cuda(const char* op, const char* name, const Tensor& t) {
  QCORE_CHECK(t.is_cuda(), op, ": ", name, " is not on a CUDA device");
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& first) {
  check_cuda(op, name, t);
  QCORE_CHECK(t.get_device_index() == first.get_device_index(), op, ": ", name, " is on cuda:",
                  int(t.get_device_index()), "; the other arguments are on cuda:",
                  int(first.get_device_index()));
}

inline void check_dtype(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<ScalarType> allowed) {
  const ScalarType given = dtype_of(t);
  for (ScalarType type : allowed) {
    if (given == type) return;
  }
  std::string names;
  for (ScalarType type : allowed) names += (names.empty() ? "" : ", ") + std::string(dtype_name(type));
  fail(op, ": ", name, " is ", dtype_name(given), "; allowed: ", names);
}

inline void check_shape(const char* op, const char* name, const Tensor& t,
                        std::initializer_list<int64_t> shape) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = t.size(i) == shape.begin()[i];
  QCORE_CHECK(fits, op, ": ", name, " has shape ", shape_of(t), "; it must be ",
                  shape_text(shape.begin(), static_cast<int64_t>(shape.size())));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
  QCORE_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous; it must be");
}

// On the device of `first`, of this dtype and shape, contiguous.
inline void check_tensor(const char* op, const char* name, const Tensor& t, const Tensor& first,
                         std::initializer_list<ScalarType> allowed,
                         std::initializer_list<int64_t> shape) {
  check_same_device(op, name, t, first);
  check_dtype(op, name, t, allowed);
  check_shape(op, name, t, shape);
  check_contiguous(op, name, t);
}

// x [..., K] as M rows of K elements, `stride` elements apart.
struct Rows {
  Tensor tensor;  // keeps a copy alive where x's memory was not rows
  int64_t m, k, stride;

  const void* data() const { return tensor.data_ptr(); }
};

inline Rows as_rows(const char* op, const char* name, const Tensor& x) {
  check_cuda(op, name, x);
  const int64_t dim = x.dim();
  QCORE_CHECK(dim >= 1, op, ": ", name, " has no dimension; it must be [..., K]");
  const int64_t k = x.size(dim - 1);
  int64_t m = 1;
  for (int64_t i = 0; i + 1 < dim; ++i) m *= x.size(i);
  if (dim == 2 && (k <= 1 || x.stride(1) == 1) && x.stride(0) >= k) return {x, m, k, x.stride(0)};
  return {x.is_contiguous() ? x : torch::stable::contiguous(x), m, k, k};
}

inline std::vector<int64_t> shape_with_last(const Tensor& x, int64_t last) {
  std::vector<int64_t> shape(x.dim(), last);
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

// A tensor on a device, or on that of `like`, uninitialized, contiguous. Straight to the allocation: new_empty of the
// stable ABI looks its operator up by name, which takes as long as a launch.
inline Tensor new_tensor(int32_t device, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i > 1; --i) strides[i - 2] = strides[i - 1] * std::max<int64_t>(1, shape[i - 1]);
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  QCORE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), code,
                                       aoti_torch_device_type_cuda(), device, &made) == AOTI_TORCH_SUCCESS,
              "no memory on cuda:", device, " for a tensor of shape ",
              shape_text(shape.data(), static_cast<int64_t>(shape.size())), " of ", dtype_name(type));
  return Tensor(made);
}
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return new_tensor(like.get_device_index(), shape, type);
}
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, dtype_of(like));
}

// New tensors on the device of x: of its shape in the first `dim` dimensions, contiguous.
inline Tensor new_like(const Tensor& x, int64_t dim, ScalarType type) {
  std::vector<int64_t> shape(dim);
  for (int64_t i = 0; i < dim; ++i) shape[i] = x.size(i);
  return new_tensor(x, shape, type);
}
inline Tensor new_column(const Tensor& x, ScalarType type) {
  return new_tensor(x, shape_with_last(x, 1), type);
}

// Makes the device of a tensor current while it lives, and knows torch's current stream there.
class Launch {
 public:
  explicit Launch(const Tensor& t) : guard_(t.get_device_index()), stream_(current_stream(t.get_device_index())) {}
  cudaStream_t stream() const { return stream_; }

 private:
  // Defined in library.cpp. The symbol is looked up when it is needed, so that the library loads
  // beside a torch that was built without CUDA.
  static cudaStream_t current_stream(int32_t device);

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// Allows a kernel so much dynamic shared memory, once on each device. `done` belongs to the kernel.
inline void allow_shared(const char* op, const void* kernel, int bytes, int device, std::atomic<uint64_t>& done) {
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (done.load(std::memory_order_relaxed) & bit) return;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
  done.fetch_or(bit, std::memory_order_relaxed);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

// Facts of a device, read once.
struct DeviceFacts {
  int capability;  // 90 for sm_90
  int sm_count;
  int most_shared;  // bytes of shared memory that a block can have
  bool sm90_code;   // whether kernels run as code for SM90 or later: with clusters, and launched early
};
const DeviceFacts& device_facts(int32_t device);

// Of the current device, for which code was chosen among what was compiled.
bool compiled_for_sm90_or_later();

}  // namespace qcore_cuda
