// What a generated kernel is given, and the numbers by which generated code names its types. Included by
// the host, by nvcc, by NVRTC and by the emulation that the tests use: no header is needed.
#pragma once

namespace qcore_marlin {

enum Act : int { kF16, kBF16, kS8, kActE4m3 };
enum Weight : int { kU4, kU4B8, kU8, kU8B128, kE4m3, kE2m1 };
enum Scale : int { kOwnScale, kE4m3Scale, kE8m0Scale };  // kOwnScale: of the output's type

struct Params {
  const void* a;              // [m, k_in], rows lda elements apart, 16-byte pieces
  const void* b;              // Marlin's words for [k, n]
  const void* scales;         // [groups, n]; of one group also float32
  const void* zeros;          // [groups, n]: packed words, or float16 numbers
  const int* g_idx;           // [k]: the group of each input, for kernels of any order
  const float* a_scales;      // m or one; 16-bit activations may have none
  const float* global_scale;  // one
  const void* bias;           // [n_out] or [n], of the output's type
  void* c;                    // [m, n_out], rows ldc elements apart
  float* partials;            // two tiles for each block
  int* counters;              // one for each block, zero before and after
  long long lda, ldc;
  int m, n, k;                // of the tiles; n is a multiple of 64, k of 16 (of 32 for 8-bit activations)
  int k_in, n_out;            // of the activations and of the output: at most k and n
  int groups;
  int a_scale_stride;         // 0 for one scale, else 1
  int float_scales;           // whether scales (of one group) are float32
  int plain_bias;             // whether bias is in the order of outputs, else in Marlin's
};

// Shared memory of a kernel: its stages, then what sums pass through on their way out.
struct SharedSizes {
  int a, b, scales, zeros, stages, sums;

  // zeros: 0 for none, 1 for codes, 2 for numbers; group in units of 16 as in Config.
  constexpr SharedSizes(int act_bytes, int bits, int scale_bytes, int group, int zero_kind, int m8, int tile_k, int tile_n,
                        int threads, int stages_)
      : a(8 * m8 * tile_k * act_bytes), b(tile_k * tile_n * bits / 8), scales(rows(group, tile_k) * tile_n * scale_bytes),
        zeros(zero_kind == 0 ? 0
                             : (group > 0 ? rows(group, tile_k) : 1) * (zero_kind == 2 ? tile_n * 2 : tile_n * bits / 8)),
        stages(stages_), sums(threads / 32 / (tile_n / 64) * 8 * (tile_n + 4) * 4) {}

  static constexpr int rows(int group, int tile_k) { return group <= 0 ? 0 : tile_k > 16 * group ? tile_k / (16 * group) : 1; }
  constexpr int stage() const { return a + b + scales + zeros; }
  constexpr int all() const { return stages * stage() + sums + 16; }
};

}  // namespace qcore_marlin
