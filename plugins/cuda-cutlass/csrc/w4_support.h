// What the weight-only ops share on the host: activations made ready, products with dequantized
// weights, bias.
#pragma once

#include <optional>

#include "op_support.h"

namespace qcore_cuda {

// Up to so many rows the kernel for few rows is used, beyond it weights are dequantized. Measured on an
// H200 with `benchmarks/cuda_w4.py --crossing` (benchmarks/results/cuda_w4_crossing.json): at 32 rows
// GPTQ's took 0.36 of the time at 28672x4096, 0.63 at 4096x14336 and 0.87 at 4096x4096; at 48 the last
// is slower, by 1.18.
constexpr int64_t kFewRows = 32;

// The same where SM90's kernel for many rows can run the weight. benchmarks/results/cuda_mixed.json: at 32
// rows it takes 0.78 to 0.9 of the time of the one for few; fewer were not measured.
constexpr int64_t kFewRowsBesideSm90 = 16;

inline bool aligned_16(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

// The tensor, or a copy of it that begins where 16-byte loads can.
inline Tensor aligned(const Tensor& t) { return aligned_16(t) ? t : torch::stable::clone(t); }

// Activations (16-bit) as rows whose 16-byte pieces can be loaded: as they are, or a copy of `columns`
// columns (then rounded up to 8, with zeros). With `perm`, int32 [columns] on the device, column i of
// the copy is perm[i] of x, or zeros where x has no such column.
Rows ready_rows(const char* op, const char* name, const Tensor& x, const int32_t* perm, int64_t columns,
                cudaStream_t stream);

// x [..., K] @ w [K, N], the result in x's dtype or in float32.
Tensor product(const Tensor& x, const Tensor& w, bool out_float);

// out [..., N] += bias [N], each Half, BFloat16 or Float. In Marlin's order bias is permuted as scales
// are that there is one of for each column.
void add_bias(const Tensor& out, const Tensor& bias, bool marlin_order, cudaStream_t stream);

// The tensor, if there is one and anything is in it.
inline const Tensor* present(const std::optional<Tensor>& t) { return t && t->numel() ? &*t : nullptr; }

}  // namespace qcore_cuda
