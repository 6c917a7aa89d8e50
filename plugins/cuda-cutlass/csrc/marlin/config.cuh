// One generated kernel as a type: what it multiplies and how it is cut into tiles.
#pragma once

#include "params.h"
#include "ptx.cuh"

namespace qcore_marlin {

// FAMILY: 75, 80 or 89, of whose instructions it is made. GROUP: inputs in a group in units of 16; -1 for
// one group of all inputs, 0 where each input names its group. M8: rows of a tile in units of 8.
template <int FAMILY_, int ACT_, int WEIGHT_, int SCALE_, bool BF16_OUT_, int GROUP_, bool FLOAT_ZERO_, int M8_, int TILE_K_,
          int TILE_N_, int THREADS_, int STAGES_>
struct Config {
  static constexpr int FAMILY = FAMILY_, ACT = ACT_, WEIGHT = WEIGHT_, SCALE = SCALE_, GROUP = GROUP_, M8 = M8_;
  static constexpr int TILE_K = TILE_K_, TILE_N = TILE_N_, THREADS = THREADS_, STAGES = STAGES_;
  static constexpr bool BF16_OUT = BF16_OUT_, FLOAT_ZERO = FLOAT_ZERO_;

  static constexpr bool WIDE = ACT == kF16 || ACT == kBF16;  // activations of 16 bits
  static constexpr bool BF16 = ACT == kBF16;
  static constexpr bool INT8 = ACT == kS8;
  static constexpr int ACT_BYTES = WIDE ? 2 : 1;
  static constexpr int BITS = WEIGHT == kU4 || WEIGHT == kU4B8 || WEIGHT == kE2m1 ? 4 : 8;
  static constexpr bool ZEROS = WEIGHT == kU4 || WEIGHT == kU8;  // there is one for each group and output
  static constexpr bool GROUPED = GROUP > 0;
  static constexpr bool ANY_ORDER = GROUP == 0;

  // Tiles. A warp multiplies 64 outputs by STEP inputs at a time; warps side by side share the outputs of
  // a tile first, then its inputs.
  static constexpr int TILE_M = 8 * M8;
  static constexpr int WARPS_N = TILE_N / 64, WARPS_K = THREADS / 32 / WARPS_N;
  static constexpr int WARP_K = TILE_K / WARPS_K;
  static constexpr int STEP = 32 / ACT_BYTES, STEPS = WARP_K / STEP;
  // Marlin's pieces: 1024 codes of STEP inputs, in a stage so many rows of them.
  static constexpr int PIECE_N = 1024 / STEP, PIECES = 64 / PIECE_N, PIECE_BYTES = 1024 * BITS / 8;
  static constexpr int PIECE_ROWS = TILE_K / STEP;
  static constexpr int WORDS = BITS;  // of a piece, each thread's

  // Blocks on one processor, for the compiler's count of registers.
  static constexpr int BLOCKS = M8 <= 2 ? 2 : 1;

  // Scales and zero points of a stage.
  static constexpr int SCALE_BYTES = SCALE == kOwnScale ? 2 : 1;
  static constexpr int GROUP_ROWS = !GROUPED ? 0 : TILE_K > 16 * GROUP ? TILE_K / (16 * GROUP) : 1;
  static constexpr int ZERO_ROWS = !ZEROS ? 0 : GROUPED ? GROUP_ROWS : 1;
  static constexpr int SCALE_ROW = TILE_N * SCALE_BYTES;
  static constexpr int ZERO_ROW = !ZEROS ? 0 : FLOAT_ZERO ? TILE_N * 2 : TILE_N * BITS / 8;

  static constexpr SharedSizes SIZES{ACT_BYTES, BITS, SCALE_BYTES, GROUP, !ZEROS ? 0 : FLOAT_ZERO ? 2 : 1, M8, TILE_K,
                                     TILE_N, THREADS, STAGES};
  static constexpr int A_BYTES = SIZES.a, B_BYTES = SIZES.b, SCALES_BYTES = SIZES.scales, STAGE_BYTES = SIZES.stage();
  static constexpr int SUM_BYTES = SIZES.sums, SUM_ROW = TILE_N + 4, SHARED_BYTES = SIZES.all();

  static_assert(SCALES_BYTES == GROUP_ROWS * SCALE_ROW && SIZES.zeros == ZERO_ROWS * ZERO_ROW, "rows of a stage");
  static_assert(TILE_N % 64 == 0 && THREADS % (32 * WARPS_N) == 0 && TILE_K % WARPS_K == 0, "tiles");
  static_assert(WARP_K % STEP == 0 && (GROUP <= 0 || 16 * GROUP % STEP == 0), "steps");
  static_assert(GROUP <= 0 || WARP_K % (16 * GROUP) == 0 || 16 * GROUP % WARP_K == 0, "groups");
  static_assert(!FLOAT_ZERO || (ZEROS && WIDE), "float zero points");
  static_assert(!ANY_ORDER || (WIDE && !ZEROS && SCALE == kOwnScale), "activation order");
};

}  // namespace qcore_marlin
