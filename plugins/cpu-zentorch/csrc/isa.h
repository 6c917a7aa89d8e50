// What one instruction set offers to the ops: a table of plain function pointers.
//
// Every instruction set is one translation unit (isa_<name>.cpp), compiled with its own flags, that
// fills one `IsaKernels`. Only plain data crosses this boundary: a type with inline functions shared by
// two such units could leave code of the wider one behind a symbol that the narrower one calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qcore_cpu {

enum class Dtype : int { f32, f16, bf16 };

// Output features per block of every packed layout: one 64-byte line holds one 32-bit word of each row.
constexpr int64_t kBlock = 16;

// The packed weight of wna16_linear, see wna16_pack.cpp.
struct Wna16Weights {
  const int32_t* packed;  // [blocks, groups * words_per_group, 16]
  const void* scale;      // [blocks, groups, 16] of scale_dtype
  Dtype scale_dtype;
  const uint8_t* zero;  // [blocks, groups, 16], or null: every zero point is 2^(bits-1)
  int64_t groups;
  int64_t words_per_group;
};

// The packed weight of int8_scaled_linear, see int8_pack.cpp.
struct Int8Weights {
  const int8_t* packed;  // [blocks, quads, 16, 4]
  int64_t quads;
  const void* scale;  // [n] or one element, of scale_dtype
  Dtype scale_dtype;
  bool scale_per_channel;
  const int32_t* col_sums;  // [n]: sum over K of the weight
};

// Rows [row, row + rows) of the result go to data + row * n; columns >= n are never touched.
struct Output {
  void* data;
  Dtype dtype;
  int64_t n;
  const void* bias;  // [n] of bias_dtype, or null
  Dtype bias_dtype;
};

// How a row of activations becomes int8.
struct RowQuant {
  bool dynamic;
  bool symmetric;
  float scale;  // static only
  int32_t azp;  // static only, in [-128, 127]; x ~ (q - azp) * scale
};

struct IsaKernels {
  const char* name;

  // Largest number of activation rows that one call of the kernels below takes.
  int wna16_rows;
  int int8_rows;

  // Activations for wna16: dst[slot * rows + row] = f32(x[row, perm ? perm[slot] : slot]), 0 where there
  // is no input (perm[slot] < 0, or slot >= k). `x` points to the first of `rows` contiguous rows.
  void (*wna16_pack_rows)(const void* x, Dtype dtype, int rows, int64_t k, int64_t slots,
                          const int32_t* perm, float* dst);

  // `rows` packed activation rows against the blocks [block_begin, block_end); by log2(bits) - 1.
  void (*wna16[3])(const Wna16Weights& w, int rows, const float* x, int64_t block_begin,
                   int64_t block_end, const Output& out, int64_t row);

  // One row to int8; returns its scale and azp. A row with NaN or infinity gets the scale NaN.
  void (*quantize_row)(const void* x, Dtype dtype, int64_t k, const RowQuant& mode, int8_t* q,
                       float* scale, int32_t* azp);

  // int8 rows [rows, quads * 4] to what `int8` reads; `int8_quad_bytes` bytes per row and quad.
  int int8_quad_bytes;
  void (*int8_pack_rows)(const int8_t* q, int rows, int64_t quads, void* dst);

  // scale and azp point to the entries of the first of the `rows` rows.
  void (*int8)(const Int8Weights& w, int rows, const void* x, const float* scale, const int32_t* azp,
               int64_t block_begin, int64_t block_end, const Output& out, int64_t row);
};

extern const IsaKernels scalar_kernels;
#ifdef QCORE_CPU_X86
extern const IsaKernels avx2_kernels;
extern const IsaKernels avx512_kernels;
#endif

// The instruction set in use: the widest one that the processor and the operating system support,
// unless set_isa chose another.
const IsaKernels& active_isa();

}  // namespace qcore_cpu
