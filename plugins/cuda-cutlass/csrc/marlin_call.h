// What the host says to the generated kernels of Marlin's layout: csrc/marlin_linear.cu.
#pragma once

#include <optional>

#include "op_support.h"

namespace qcore_cuda {

enum class CodeType : int { kUint4, kUint4b8, kUint8, kUint8b128, kE4m3, kE2m1 };
enum class MarlinScale : int { kHalf, kBFloat16, kFloat, kE4m3, kE8m0 };

// The type of an id (`ScalarType.id` of qcore).
CodeType marlin_code_type(const char* op, int64_t id);
inline int marlin_bits(CodeType type) {
  return type == CodeType::kUint4 || type == CodeType::kUint4b8 || type == CodeType::kE2m1 ? 4 : 8;
}

struct MarlinCall {
  const char* op;
  const Rows* a;         // [m, at most k], 16-byte rows
  ScalarType out_type;   // Half or BFloat16; that of `a` where that has 16 bits
  CodeType type;
  MarlinScale scale_type;
  int64_t group_size;    // 0: one group
  bool float_zeros;
  int64_t n, k, n_out;
  const Tensor* words;
  const Tensor* scales;
  const Tensor* zeros;         // these may be null
  const Tensor* g_idx;
  const Tensor* a_scales;
  const Tensor* global_scale;
  const Tensor* bias;
  bool plain_bias;             // in the order of outputs
  const Tensor* workspace;     // int32, zeros before and after
};

// Writes the product to `out` [m, n_out]; false where no kernel for it was compiled or loaded.
bool run_marlin(const MarlinCall& call, const Tensor& out, const Launch& launch);

// Scales' kind and the inputs that share one (0: all), after checks.
struct MarlinScales {
  MarlinScale type;
  int64_t group_size;
};
MarlinScales check_marlin_scales(const char* op, const Tensor& scales, const Tensor& a, CodeType type, int64_t k, int64_t n);

}  // namespace qcore_cuda
