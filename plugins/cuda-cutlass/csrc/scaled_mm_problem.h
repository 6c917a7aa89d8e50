// A scaled product, for kernels. Nothing here needs CUDA or torch, so that tests can fill it in.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace qcore_cuda {

// Checked arguments. a is [M, K] row-major, b [K, N] column-major, out [M, N] row-major.
struct ScaledMM {
  int m, n, k;
  const void* a;
  const void* b;
  void* out;
  int64_t a_stride, b_stride, out_stride;  // elements from row to row, column to column, row to row
  bool is_fp8;                             // e4m3, else int8
  bool out_bf16;                           // else float16
  const float* a_scale;
  const float* b_scale;
  bool a_per_token, b_per_channel;  // else one scale for all
  const void* bias;                 // [N] of out's type, or null
  // out = scales * (a @ b - azp * azp_adj) + bias, with azp_adj the sums of b's columns. azp is [M] or
  // [1]; null where it is 1, being multiplied into azp_adj already. Both null without zero points.
  const int32_t* azp;
  bool azp_per_token;
  const int32_t* azp_adj;  // [N]
  // Scales by block instead: a_scale [M, ceil(K / 128)] and b_scale [ceil(K / 128), ceil(N / 128)],
  // with these strides, in elements.
  bool by_block;
  int64_t a_scale_m, a_scale_k, b_scale_k, b_scale_n;

  int device;
  int capability;
  int sm_count;
  bool early_launch;
  CUstream_st* stream;
};

// K up to which tiles of 128 rows with scales by block have room for b's.
constexpr int kBlocksMostK = 65024;

}  // namespace qcore_cuda
