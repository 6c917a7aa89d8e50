// What the weight-only ops share on the host: activations made ready, products with dequantized
// weights, bias.
#pragma once

#include <optional>

#include "op_support.h"

namespace qcore_cuda {

inline bool aligned_16(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

// The tensor, or a copy of it that begins where 16-byte loads can.
inline Tensor aligned(const Tensor& t) { return aligned_16(t) ? t : torch::stable::clone(t); }
// Whether that made no copy. What a kernel just ahead writes, the next may not read before its turn: with a copy of
// weights, a launch is not early.
inline bool in_place(const Tensor& used, const Tensor& given) { return used.data_ptr() == given.data_ptr(); }

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
