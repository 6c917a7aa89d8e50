// Weights in GPTQ's layout, checked: codes of `bits` along K in int32 [K * bits / 32, N], without gaps.
#pragma once

#include "w4_mid_m_plan.h"
#include "w4_sm90_plan.h"
#include "w4_small_m.cuh"
#include "w4_support.h"
#include "w4_ways.h"

namespace qcore_cuda {

// Kernels of e2m1 are compiled for bfloat16 alone: its scales are e8m0, for which half has no room.
template <typename T>
constexpr bool takes_e2m1 = std::is_same<T, __nv_bfloat16>::value;

struct GptqWeight {
  Tensor words;
  int bits;
  bool shuffled;  // 2 and 4 bits: in the order of `gptq_shuffle`
  int64_t k, n;   // inputs and outputs that there are codes of
  Tensor scales;  // [groups, n]
  GptqZeros zeros;
  int64_t group_size;
  const int32_t* g_idx;  // the group of each input; null: k / group_size
  const int32_t* perm;   // row k belongs to input perm[k]; null: to k
  // Codes are e2m1 or e4m3, by their bits, and have no zero points. `column_scales`, [n]: for sums; where there is
  // one group, its scales are ones.
  bool floats = false;
  const float* column_scales = nullptr;
  bool lanes = false;   // words are those of gptq_packing.py's in_lanes: 4 bits, bfloat16, SM90's two kernels
  bool scaled = false;  // NvFp4 (w4_codes.cuh): scales are bytes [groups of 32, n, 2], with column_scales
};

ScaleType scale_type_of(const Tensor& scales);

// Rounds (code - zero) * scale to `out`'s dtype, row k at row perm[k] of `out` [rows, n].
void dequantize_gptq(const char* op, const GptqWeight& w, const Tensor& out, cudaStream_t stream);

// Whether the kernel for few rows can run it.
bool fits_small_m(const GptqWeight& w);

// The kernels that can run it with activations of `type`.
Ways ways_of(const GptqWeight& w, ScalarType type, bool out_float, int32_t device);

// x [..., K] times the weight, by such a kernel: [..., columns].
Tensor multiply_by(Way way, const char* op, const Tensor& x, const GptqWeight& w, const Tensor* bias,
                   int64_t columns, bool out_float, const Launch& launch);

// Activations that these kernels take; else an error.
void check_activations(const char* op, const Tensor& a);

// x [..., K] times the weight: [..., columns].
Tensor small_m_gptq(const char* op, const Tensor& x, const GptqWeight& w, const Tensor* bias, int64_t columns,
                    bool out_float, Division wish, const Launch& launch);

// The same by SM90's kernel for many rows (w4_sm90.cu), where it can run the weight. `wish`: how the work is to be
// divided; null: as the kernel would.
bool fits_w4_sm90(const GptqWeight& w, ScalarType type, int32_t device);
Tensor w4_sm90(const char* op, const Tensor& x, const GptqWeight& w, const Tensor* bias, int64_t columns,
               const Launch& launch, const many::Plan* wish = nullptr);

// The same by SM90's kernel for a medium number of rows (w4_mid_m.cu), where it can run the weight. `wish`:
// with column_warps of 0 the work is divided as the kernel would.
bool fits_w4_mid_m(const GptqWeight& w, ScalarType type, int32_t device);
Tensor w4_mid_m(const char* op, const Tensor& x, const GptqWeight& w, const Tensor* bias, int64_t columns,
                bool out_float, const Launch& launch, const mid_m::Plan& wish = {});

}  // namespace qcore_cuda
