// out = (a * a_scales) @ (b * b_scales) + bias, for 8-bit a and b: what the files of scaled_mm share.
#pragma once

#include "op_support.h"

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
  cudaStream_t stream;
};

// Fills in what is known of the device.
void set_device(ScaledMM& p, int32_t device);

// By the kernel that suits the problem. All but this has been checked; p.stream is set.
void scaled_mm(const char* op, const ScaledMM& p);

// For few rows: any generation (FP8 from SM89 on). M <= kSkinnyMaxM.
constexpr int kSkinnyMaxM = 64;
void scaled_mm_skinny(const ScaledMM& p);

// Any M, any generation (FP8 from SM89 on).
void scaled_mm_portable(const ScaledMM& p);

// SM90, few rows; M <= kSkinnyMaxM, and half of that with scales by block.
void scaled_mm_sm90_columns(const ScaledMM& p);

// SM90, very few rows of 16-bit floats: quantizes them, a scale for each row (and a zero point, where p.azp_adj is
// given), and multiplies. Takes nothing of p that is about a. False, and nothing done, where x does not fit.
bool scaled_mm_sm90_fp8_by_row(const ScaledMM& p, const Rows& x, const float* upper_bound);
bool scaled_mm_sm90_int8_by_row(const ScaledMM& p, const Rows& x);

// SM90, FP8, any M, in tiles of 64, 128 or 256 rows (with scales by block of 64); N and the rows of out in multiples of
// 16 bytes. `shared`: the last tiles by several processors each, if there are not as many tiles for all.
void scaled_mm_sm90_tiles(const ScaledMM& p, int rows, bool shared);

// SM90, FP8 with scales by block, any M, in tiles of 128 rows; likewise, and K up to kBlocksMostK.
constexpr int kBlocksMostK = 65024;
void scaled_mm_sm90_blocks(const ScaledMM& p, bool shared);

}  // namespace qcore_cuda
