// What the ops share: argument checks in words.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

namespace qcore_xpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
#define QCORE_CHECK(condition, ...)                  \
  do {                                               \
    if (!(condition)) ::qcore_xpu::fail(__VA_ARGS__); \
  } while (false)

inline std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

// What `scalar_type` of the Stable ABI is, and also for dtypes that torch 2.10 did not know in it (e8m0).
inline ScalarType dtype_of(const Tensor& t) {
  int32_t dtype = -1;
  QCORE_CHECK(aoti_torch_get_dtype(t.get(), &dtype) == AOTI_TORCH_SUCCESS, "a tensor has no dtype");
  return static_cast<ScalarType>(dtype);
}

inline const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

}  // namespace qcore_xpu
