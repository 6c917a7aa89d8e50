// What one instruction set offers to the ops: a table of plain function pointers.
//
// Every instruction set is one translation unit (isa_<name>.cpp), compiled with its own flags, that
// fills one `IsaKernels`. Only plain data crosses this boundary: a type with inline functions shared by
// two such units could leave code of the wider one behind a symbol that the narrower one calls.
#pragma once

#include <stdint.h>

#include "codes.h"

namespace qcore_cpu {

// e4m3 and e8m0 are the scales of small floats only, and none of them is NaN or 2^-127.
enum class Dtype : int { f32, f16, bf16, e4m3, e8m0 };

// How wna16 multiplies: floats; the same where all activations are bfloat16; integers, with activations
// rounded to int8.
enum class Compute : int { f32, bf16, int8 };

// Output features per block of every packed layout: one 64-byte line holds one 32-bit word of each row.
constexpr int64_t kBlock = 16;
// A chunk: inputs that share a scale and whose sum is kept in registers; at most this many.
constexpr int64_t kChunkSlots = 128;
// Blocks that the wide wna16 kernel takes at a time, and what it needs to work in.
constexpr int64_t kPanelBlocks = 4;
constexpr int64_t kPanelRows = 256;
constexpr int64_t kTileRows = 8;  // of a tile, at most
constexpr int64_t kPanelScratch = (kChunkSlots + kPanelRows + kTileRows) * kPanelBlocks * 64;

// One number for each group and output: a float, or int8 times a half that 2^span_bits
// groups share.
struct Wna16Factor {
  const void* data;   // [blocks, groups, 16] of dtype; of int8 if there is `super`
  Dtype dtype;
  const void* super;  // f16 [blocks, supers, 16], or null
};

// The packed weight of wna16_linear. Inputs stand in slots: those of a chunk next to each other, filled
// up to whole words with slots that have no input (wna16_pack.cpp).
struct Wna16Weights {
  const uint8_t* packed;  // [blocks, words, lines, 64 bytes]: codes.h
  int64_t words;
  Wna16Factor scale;
  Wna16Factor offset;  // added to each weight of its group; without data: none, and 0
  int64_t supers;
  int span_bits;  // groups == supers << span_bits
  const uint8_t* zero;  // [blocks, groups, 16], or null: every zero point is 2^(bits-1), or with an
                        // offset 0 (up to 6 bits) or 128 (8 bits)
  int64_t groups;
  const int32_t* chunk_begin;  // [chunks + 1], first word of each
  const int32_t* chunk_group;  // [chunks]
  int64_t chunks;
  const int32_t* perm;  // [slots]: the input at each slot, -1 for none; or null: slot == input
  int64_t k;
  const float* table;  // [2^bits]: the value of each code, for the kernels that look them up
};

// The packed weight of int8_scaled_linear.
struct Int8Weights {
  const uint8_t* packed;  // [blocks, quads, 16, 4], each weight + 128
  int64_t quads;
  const void* scale;  // [n] or one element, of scale_dtype
  Dtype scale_dtype;
  bool scale_per_channel;
  const int32_t* col_sums;  // [n]: sum over K of the weight
};

// Row `row` of the result goes to data + row * n; columns >= n are never touched.
struct Output {
  void* data;
  Dtype dtype;
  int64_t n;
  const void* bias;  // [n] of bias_dtype, or null
  Dtype bias_dtype;
  const float* row_scale = nullptr;  // [rows], or null; multiplies before the bias is added
};

// How a row of activations is rounded to small floats.
enum class SmallFloat : int { e4m3, e4m3fnuz, mxfp4, mxfp8, nvfp4 };
struct RowRounding {
  SmallFloat format;
  int64_t group;       // e4m3: inputs that share a scale; 0: all share `scale`
  const float* scale;  // e4m3: what all inputs share; nvfp4: the scale of the scales; null: to be computed
  float bound;         // e4m3: the largest magnitude that a computed scale of a row covers
};

// How a row of activations becomes int8.
struct RowQuant {
  bool dynamic;
  bool symmetric;
  float scale;  // static only
  int32_t azp;  // static only; x ~ (q - azp) * scale
};

// What the fold of a chunk needs to know of a row of activations.
struct FloatSide {
  float sum;  // of the inputs of the chunk
};
struct ScaledSide : FloatSide {
  float scale = 1.0f;  // input ~ what was packed * scale
};
struct QuantSide {
  float sum;      // of the inputs as rounded
  float scale;    // input ~ code * scale
  int32_t start;  // - (sum of codes) * (zero point that all groups have)
};

// Rows are packed in tiles of at most `rows`, filled up with zeros to `padded(rows)`, a number of rows that
// there is code for. In a panel the tiles of a chunk stand side by side: [chunk][tile][step][row], 4 bytes
// each, and sides [chunk][row]; both have room for `panel_rows` rows. A row's result depends neither on the
// tile nor on which of the two kernels ran.
struct Wna16Kernels {
  int rows;
  int step_slots;
  int side_bytes;
  int (*padded)(int rows);

  // One tile of `rows` activation rows, `stride` elements apart, to the place of row `first` of a panel.
  // `line` has room for all slots. Where activations become int8, they have one scale a chunk, or one a row
  // if `per_row`.
  void (*pack_rows)(const Wna16Weights& w, const void* x, Dtype dtype, int rows, int64_t stride,
                    bool per_row, float* line, void* panel, void* sides, int64_t panel_rows,
                    int64_t first);
  // A panel of one tile, and of `padded(rows)` rows, against the blocks [block_begin, block_end); codes are
  // decoded in registers.
  void (*narrow)(const Wna16Weights& w, int rows, const void* tile, const void* sides,
                 int64_t block_begin, int64_t block_end, const Output& out, int64_t row);
  // `rows` <= kPanelRows rows of a panel from `first` on, where a tile begins, against at most kPanelBlocks
  // blocks; codes are decoded once into `scratch` and used for all rows.
  void (*wide)(const Wna16Weights& w, int rows, const void* panel, const void* sides,
               int64_t panel_rows, int64_t first, int64_t block_begin, int64_t block_end, void* scratch,
               const Output& out, int64_t row);
};

// What the sums of a row of int8_scaled_linear begin with, and become: (sum - azp * col_sum) * scale.
struct Int8Side {
  float scale;
  int32_t azp;
  int32_t start;  // -128 * (sum of codes), where weights are multiplied with 128 too much
};

// Rows in int8, in tiles of `rows` of Int8Kernels (or one tile of `padded` rows). The tiles of a chunk of
// `chunk_quads` quads stand side by side (int8_rows.h).
struct Int8Panel {
  char* codes;      // [chunk][tile][quad][row][4]
  char* extra;      // if the kernel saturates: twice as many bytes as in codes
  int32_t* extras;  // and [chunk][row]
  Int8Side* sides;  // [row]
  int64_t rows;     // that there is room for: whole tiles
};

struct Int8Kernels {
  int rows;
  int chunk_quads;
  bool saturates;
  int (*padded)(int rows);

  // `count` rows of x, `stride` elements apart, to the tile of a panel that begins with row `first`. `space` has
  // int8_space(k) bytes.
  void (*pack_rows)(const void* x, Dtype dtype, int count, int64_t stride, const RowQuant& mode, int64_t k,
                    int8_t* space, const Int8Panel& panel, int64_t first);
  // A panel of one tile, of `padded(rows)` rows, against the blocks [block_begin, block_end).
  void (*narrow)(const Int8Weights& w, int rows, const Int8Panel& panel, int64_t block_begin,
                 int64_t block_end, const Output& out);
  // `rows` rows of a panel from `first` on, where a tile begins, against at most kPanelBlocks blocks; `scratch`
  // has kInt8Scratch bytes.
  void (*wide)(const Int8Weights& w, int rows, const Int8Panel& panel, int64_t first, int64_t block_begin,
               int64_t block_end, void* scratch, const Output& out, int64_t row);
};
constexpr int64_t kInt8Scratch = (kPanelRows + kTileRows) * kPanelBlocks * 64;
constexpr int64_t int8_space(int64_t k) { return kTileRows * ((k + 63) / 64) * 66; }

// One query of heads that share keys and values, the elements of each next to each other; strides in elements.
struct Attention {
  Dtype dtype;  // of all
  int heads;    // at most kAttentionHeads
  int64_t size, length;
  float scale;
  const void* query;  // [heads, size]
  int64_t query_stride;
  const void* keys;  // [length, size]
  int64_t key_stride;
  const void* values;  // [length, size]
  int64_t value_stride;
  void* out;  // [heads, size], dense
};
constexpr int64_t kAttentionHeads = 4;

struct IsaKernels {
  const char* name;

  // [Compute][width_index(bits)]
  Wna16Kernels wna16[3][kWidths];

  // One row to int8; gives its scale and azp, returns the sum of its codes. A row with NaN or infinity gets
  // the scale NaN.
  int32_t (*quantize_row)(const void* x, Dtype dtype, int64_t k, const RowQuant& mode, int8_t* q,
                          float* scale, int32_t* azp);
  Int8Kernels int8;

  // [for bfloat16 activations]: wna16 of 4 and of 8 bits, with small floats as codes and no zero points.
  Wna16Kernels e2m1[2] = {};
  Wna16Kernels e4m3[2] = {};  // NaN is 480; sides are ScaledSide; slot 2j at bit 8j of the low half word
  // [4 bits, 8 bits]: any values, float32 products.
  Wna16Kernels lookup[2] = {};

  // One row to bfloat16, as `rounding` says, and its scales: one a group of e4m3, else one.
  // `line` has room for k floats.
  void (*round_row)(const RowRounding& rounding, const void* x, Dtype dtype, int64_t k, float* line,
                    uint16_t* values, float* scales) = nullptr;
  // The largest magnitude of a row; NaN if there is one.
  float (*row_amax)(const void* x, Dtype dtype, int64_t k, float* line) = nullptr;
  // `space` has room for heads * (size + length) floats.
  void (*attend)(const Attention& attention, float* space) = nullptr;
};

// Those that this build has: isa.cmake. avxvnni, avx512_bf16 and amx leave out what another set's code does as
// well, as tables without functions (isa_select.cpp).
extern const IsaKernels scalar_kernels;
extern const IsaKernels avx2_kernels;
extern const IsaKernels avxvnni_kernels;
extern const IsaKernels avx512_kernels;
extern const IsaKernels avx512_bf16_kernels;
extern const IsaKernels amx_kernels;
extern const IsaKernels neon_kernels;

// The instruction set in use: the widest one that the processor and the operating system support,
// unless set_isa chose another.
const IsaKernels& active_isa();

}  // namespace qcore_cpu
