// What the ops share: argument checks, activations as rows, reused workspace.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"

namespace qcore_cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Text of what a message is made of. No stream, as torch's own check has: those carry a locale, which may
// be that of another C++ library in the process.
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
    if (!(condition)) ::qcore_cpu::fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType allowed) {
  QCORE_CHECK(t.is_cpu(), op, ": ", name, " is not on the CPU");
  QCORE_CHECK(t.scalar_type() == allowed, op, ": ", name, " is ", dtype_name(t.scalar_type()),
                  "; it must be ", dtype_name(allowed));
}

// A contiguous tensor of this dtype and shape.
inline void check_tensor(const char* op, const char* name, const Tensor& t, ScalarType allowed,
                         std::initializer_list<int64_t> shape) {
  check_dtype(op, name, t, allowed);
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = t.size(i) == shape.begin()[i];
  if (!fits) {
    std::string wanted;
    for (int64_t side : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(side);
    QCORE_CHECK(false, op, ": ", name, " has shape ", shape_of(t), "; it must be [", wanted, "]");
  }
  QCORE_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous; it must be");
}

inline Dtype float_dtype(const char* op, const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      QCORE_CHECK(false, op, ": ", name, " is ", dtype_name(type),
                      "; allowed: Float, Half, BFloat16");
  }
}

inline Dtype float_dtype(const char* op, const char* name, const Tensor& t) {
  QCORE_CHECK(t.is_cpu(), op, ": ", name, " is not on the CPU");
  return float_dtype(op, name, t.scalar_type());
}

inline int64_t element_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// x [..., K] as rows that are `stride` elements apart; copied only where its memory is not so.
struct Rows {
  Tensor tensor;
  const char* data;
  Dtype dtype;
  int64_t rows, k, stride;

  const void* row(int64_t i) const { return data + i * stride * element_size(dtype); }
};

inline Rows as_rows(const char* op, const Tensor& x, int64_t k) {
  const Dtype dtype = float_dtype(op, "x", x);
  const int64_t dim = x.dim();
  QCORE_CHECK(dim >= 1, op, ": x has no dimension; it must be [..., K]");
  if (k < 0) k = x.size(dim - 1);
  QCORE_CHECK(x.size(dim - 1) == k, op, ": x has shape ", shape_of(x),
                  "; its last dimension must be in_features = ", k);
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < dim; ++i) rows *= x.size(i);
  const bool strided = dim == 2 && (k <= 1 || x.stride(1) == 1) && x.stride(0) >= 0;
  if (strided) {
    const int64_t stride = x.stride(0);
    return {x, static_cast<const char*>(x.data_ptr()), dtype, rows, k, stride};
  }
  Tensor dense = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const char* data = static_cast<const char*>(dense.data_ptr());
  return {std::move(dense), data, dtype, rows, k, k};
}

inline std::vector<int64_t> shape_with_last(const Tensor& x, int64_t last) {
  std::vector<int64_t> shape(x.dim(), last);
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape[i] = x.size(i);
  return shape;
}

// A result, uninitialized: x with another last dimension and dtype. Straight to the allocation: new_empty of the
// stable ABI looks its operator up by name, which takes as long as all else that a small layer does.
inline Tensor new_output(const Tensor& x, int64_t last, ScalarType type) {
  const std::vector<int64_t> shape = shape_with_last(x, last);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size() - 1; i > 0; --i) {
    strides[i - 1] = strides[i] * std::max<int64_t>(1, shape[i]);
  }
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made = nullptr;
  QCORE_CHECK(aoti_torch_empty_strided(x.dim(), shape.data(), strides.data(), code,
                                           aoti_torch_device_type_cpu(), 0, &made) == AOTI_TORCH_SUCCESS,
                  "no memory for a result of shape ", shape_of(x), " with ", last, " at the end");
  return Tensor(made);
}

inline void check_out(const char* op, const Tensor& out, const Tensor& x, int64_t n) {
  float_dtype(op, "out", out);
  bool fits = out.dim() == x.dim() && out.size(out.dim() - 1) == n;
  for (int64_t i = 0; fits && i + 1 < x.dim(); ++i) fits = out.size(i) == x.size(i);
  QCORE_CHECK(fits, op, ": out has shape ", shape_of(out), "; for x ", shape_of(x),
                  " it must end with out_features = ", n, " and be like x before that");
  QCORE_CHECK(out.is_contiguous(), op, ": out is not contiguous; it must be");
}

inline Output make_output(const char* op, const Tensor& out, const std::optional<Tensor>& bias,
                          int64_t n) {
  Output result{out.data_ptr(), float_dtype(op, "out", out), n, nullptr, Dtype::f32};
  if (bias) {
    result.bias_dtype = float_dtype(op, "bias", *bias);
    check_tensor(op, "bias", *bias, bias->scalar_type(), {n});
    result.bias = bias->data_ptr();
  }
  return result;
}

// Memory that a thread keeps between calls.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  // Aligned to 64 bytes; what it held before is lost.
  char* reserve(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (!data_) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<char*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t align_line(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Work of less than this is not worth waking another thread for: bytes to read, or multiply-adds.
constexpr int64_t kBytesPerThread = 1 << 16;
constexpr int64_t kProductsPerThread = 1 << 19;

// How many items a thread should have at least, of which each takes `cost` of `enough`.
inline int64_t grain(int64_t enough, int64_t cost) {
  return std::max<int64_t>(1, enough / std::max<int64_t>(1, cost));
}

// A tensor for packed weights, uninitialized: in pages of 2 MiB where that is possible (large_pages.cpp).
Tensor new_weight(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type);

}  // namespace qcore_cpu
