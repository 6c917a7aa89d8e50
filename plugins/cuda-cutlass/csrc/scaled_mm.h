// out = (a * a_scales) @ (b * b_scales) + bias, for 8-bit a and b: what the files of scaled_mm share.
#pragma once

#include "op_support.h"
#include "scaled_mm_problem.h"

namespace qcore_cuda {

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

// SM90, any M, in tiles of 64, 128 or 256 rows (with scales by block of 64); N and the rows of out in multiples of
// 16 bytes. `shared`: the last tiles by several processors each, if there are not as many tiles for all.
void scaled_mm_sm90_tiles(const ScaledMM& p, int rows, bool shared);

// SM90, FP8 with scales by block, any M, in tiles of 128 rows; likewise, and K up to kBlocksMostK.
void scaled_mm_sm90_blocks(const ScaledMM& p, bool shared);

}  // namespace qcore_cuda
