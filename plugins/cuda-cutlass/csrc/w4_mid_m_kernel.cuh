// SM90: a medium number of rows times packed weights of 4 or 8 bits, integers or floats, by m16n8k16. Weights are the
// left operand, 16 columns a tile, activations the right one, 8 rows a tile.
//
// Weights of 4 bits in bfloat16 lie as lanes read them (gptq_packing.py, in_lanes), activations come by ldmatrix. Of the
// others no order but GPTQ's (shuffled) is needed for lanes to read fragments by 16 bytes. The tensor core
// multiplies equal positions of K with each other, so any order of K will do that both operands have; and any
// four columns can be a lane's. A piece is 64 inputs of 32 columns: of 4 bits, 8 rows of 32 words, which the
// copy engine puts into rows of 128 bytes, vector v (four columns) of row r at v ^ r. Lane 4g + q reads vector
// g of two rows, at first (a) and then (b):
//
//              columns   0..3  4..7  8..11      28..31        activations of row g (of 8), inputs
//   inputs  0 ...  7      0a    4a     8a  ...   28a           0..7    8..15   16..23   ...   56..63
//           8 ... 15      0b    4b     8b        28b         (4g+0)a  (4g+0)b  (4g+1)a      (4g+3)a
//          16 ... 23      1a    5a     9a        29a
//          24 ... 31      1b    5b     9b        29b         The same lane has the same inputs of its row
//          32 ... 39      2b    6b    10b        30b         of activations, by the same rule: vector v of
//          40 ... 47      2a    6a    10a        30a         row g lies at v ^ g. No ldmatrix, no shuffles.
//          48 ... 55      3b    7b    11b        31b
//          56 ... 63      3a    7a    11a        31a
//
// Of any eight lanes that read at a time, 4g' ... 4g' + 7, all eight vectors lie in different banks: rows of
// (a) are 0, 2, 5, 7, and xor with g = 2j and 2j + 1 makes all of 0 ... 7 of them. 8 bits have 16 rows of
// words, of which two make the eight inputs of a lane's row above.
//
// A word holds pairs of neighbours: for tile t of a lane's columns 4g + 2t (row g of the operand) and 4g + 2t + 1
// (row g + 8), step s of two takes pairs 2s and 2s + 1 of both, and registers 2s and 2s + 1 of the activations.
// The product is out^T: a lane has columns 4g ... 4g + 3 of rows 2q and 2q + 1 of each tile of rows.
//
// Up to 16 rows, activations are multiplied with integers (code - zero) or floats, exactly, and the float32 sums of
// each piece meet their scale in float32 (AFTER): that is fewer instructions than to scale weights. With more rows,
// weights are scaled, rounded once, as if the whole weight had been dequantized; and floats where a piece has several
// groups, whose scales are powers of two or, of NvFp4, so short that nothing is rounded.
//
// Instructions of a warp for a piece of 32 columns, 4 bits, bfloat16: 8 words of 9 each (a shift, 4 lop3, 4
// multiply-adds, which scale, too, where the zero point is in the middle); for each tile of rows 2 loads, 8 mma, and 8 fma
// for sums of 64 inputs (4, if groups are of 128); and some 15 to 20 for barriers, scales and the round. Memory brings a
// piece (1 KiB) to a processor in about 57 cycles, in which it issues 228 instructions.
//
// One thread keeps the copy engine busy with four to eight stages; warps multiply. Blocks of a cluster have
// a part of K each; they and the warps of a block add up through shared memory, always in the same order.
#pragma once

#include "early_launch.cuh"
#include "sm90_ptx.cuh"
#include "w4_codes.cuh"
#include "w4_mid_m_problem.cuh"
#include "w4_mid_m_sums.cuh"

namespace qcore_cuda::mid_m {

using namespace sm90;

// ---- what one thread brings ----------------------------------------------------------------------

template <int BITS, class S, bool LANES>
__device__ __forceinline__ void bring(const Problem& p, const CUtensorMap* x_map, const CUtensorMap* w_map,
                                      const CUtensorMap* scale_map, const CUtensorMap* zero_map, uint8_t* ring,
                                      uint64_t* full, uint64_t* empty, int first, int last) {
  const int pieces = p.plan.k_warps * S::kPieces;
  const int column = blockIdx.z * p.plan.column_warps * kWarpColumns, row = blockIdx.x * S::kRows;
  const int columns = p.slots.boxes ? p.plan.column_warps * kWarpColumns
                                    : min(p.plan.column_warps * kWarpColumns, p.n - column);  // what a copy has
  const int zero_bytes = p.zeros.words ? columns * BITS / 8 : 0;
  const uint32_t bytes = pieces * (p.plan.column_warps * S::kWordBytes + p.x_rows * 128) +
                         p.slots.count * (columns * 2 + zero_bytes);
  GroupCounter of(p.group_halves);
  of.begin(2 * first * pieces);
  const auto load_weights = [&](int at, int stage) {
    barrier_expect(&full[stage], bytes);
    uint8_t* const to = ring + stage * p.layout.stage_bytes;
    load_boxes(to, w_map, &full[stage], column / kWarpColumns, at * pieces * (LANES ? 1 : S::kWordRows), kEvictFirst);
    uint8_t *scale = to + p.layout.scale_offset, *zero = to + p.layout.zero_offset;
    if (p.slots.boxes) {  // beyond K zeros come
      const int group = p.slots.count == 1 ? of.group : at * p.slots.count;
      load_box(scale, scale_map, &full[stage], column, group, kEvictNormal);
      if (zero_bytes) load_box(zero, zero_map, &full[stage], column * BITS / 32, group, kEvictNormal);
      return of.next(2 * pieces);
    }
#pragma unroll 1
    for (int i = 0; i < p.slots.count; ++i, scale += p.layout.scale_bytes, zero += p.layout.zero_bytes) {
      const int64_t group = min(of.group, p.groups - 1);  // beyond K, where activations are zeros
      load_bytes(scale, static_cast<const uint16_t*>(p.scales) + group * p.n + column, columns * 2, &full[stage]);
      if (zero_bytes) {
        load_bytes(zero, p.zeros.words + group * p.zeros.stride + column * BITS / 32, zero_bytes, &full[stage]);
      }
      of.next(1);
    }
  };
  const auto load_x = [&](int at, int stage) {
    uint8_t* const to = ring + stage * p.layout.stage_bytes + p.layout.x_offset;
    if (p.x_boxes) return load_boxes(to, x_map, &full[stage], at * pieces, row, kEvictLast);
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      load_box(to + i * S::kXBytes, x_map, &full[stage], (at * pieces + i) * 128, row, kEvictLast);
    }
  };
  // All but activations depends on no other kernel: as much as there is room for comes before this kernel's turn.
  const int early = min(last, first + p.layout.stages);
  for (int at = first; at < early; ++at) load_weights(at, at - first);
  begin_turn();
  int stage = 0;
  uint32_t round = 1;  // the first time the stages are free
  for (int at = first; at < last; ++at) {
    if (at >= early) {
      barrier_wait(&empty[stage], round);
      load_weights(at, stage);
    }
    load_x(at, stage);
    if (++stage == p.layout.stages) {
      stage = 0;
      round ^= 1;
    }
  }
}

// ---- what the others multiply --------------------------------------------------------------------

// Makes a number one that has to be kept: the compiler would rather find it again in each round.
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }

// Where a lane reads in a piece: see above.
template <class KIND>
struct Places {
  static constexpr int BITS = KIND::kBits;

  uint32_t words[2][BITS / 4], x[2];

  __device__ __forceinline__ explicit Places(int lane) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int octet = 2 * q + (b ^ (q / 2));  // of inputs
      x[b] = g * 128 + (octet ^ g) * 16;
#pragma unroll
      for (int i = 0; i < BITS / 4; ++i) {
        const int row = octet * (BITS / 4) + i;
        words[b][i] = row * 128 + (g ^ (row % 8)) * 16;
        keep(words[b][i]);
      }
      keep(x[b]);
    }
  }
  __device__ __forceinline__ uint32_t word(int b, int i) const { return words[b][i]; }
  template <bool LOOP>
  __device__ __forceinline__ uint32_t row(int b) const {
    return x[b];
  }
};

// Of words of lanes a lane has its own, and x is read by ldmatrix: row by row, eight inputs of each at a time.
template <>
struct Places<Lanes> {
  uint32_t own, x[2];

  __device__ __forceinline__ explicit Places(int lane) {
    own = lane * 16;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      x[b] = lane % 8 * 128 + ((4 * b + lane / 8) ^ (lane % 8)) * 16;
      keep(x[b]);
    }
  }
  template <bool LOOP>  // over b, so that one number must do
  __device__ __forceinline__ uint32_t row(int b) const {
    return LOOP ? x[0] ^ b * 64 : x[b];
  }
  __device__ __forceinline__ uint32_t word(int b, int) const { return own + b * 512; }
};

__device__ __forceinline__ float2 floats_of(__half2 v) { return __half22float2(v); }
__device__ __forceinline__ float2 floats_of(__nv_bfloat162 v) { return __bfloat1622float2(v); }

// What a lane needs of a group: for its four columns.
template <typename T, class KIND, bool AFTER>
struct Side {
  static constexpr int BITS = KIND::kBits;

  typename Codes<KIND, T>::Zero zero[4];
  float scale[4];                          // AFTER
  typename PairOf<T>::Type scale_pair[4];  // else

  __device__ __forceinline__ explicit Side(int constant) {
#pragma unroll
    for (int j = 0; j < 4; ++j) zero[j] = Codes<KIND, T>::zero(static_cast<uint32_t>(constant));
  }
  // `scales` and `zeros` of the lane's first column, as they lie; of which the zero point is at bit `shift`, and of
  // two scales the one at byte `shift`.
  __device__ __forceinline__ void load(const GptqZeros& rule, const uint8_t* scales, const uint8_t* zeros, int shift) {
    const uint2 two = *reinterpret_cast<const uint2*>(scales);
    if constexpr (KIND::kScaled) {
#pragma unroll
      for (int j = 0; j < 4; ++j) zero[j] = Codes<KIND, T>::zero_of(j < 2 ? two.x : two.y, j % 2 * 2 + shift);
    } else if constexpr (AFTER) {
      const float2 low = floats_of(as_pair<T>(two.x)), high = floats_of(as_pair<T>(two.y));
      scale[0] = low.x, scale[1] = low.y, scale[2] = high.x, scale[3] = high.y;
    } else {
      scale_pair[0] = as_pair<T>(__byte_perm(two.x, 0, 0x1010));
      scale_pair[1] = as_pair<T>(__byte_perm(two.x, 0, 0x3232));
      scale_pair[2] = as_pair<T>(__byte_perm(two.y, 0, 0x1010));
      scale_pair[3] = as_pair<T>(__byte_perm(two.y, 0, 0x3232));
    }
    if (!KIND::kFloat && rule.words) {
      const uint32_t four = rule.four_of<BITS>(*reinterpret_cast<const uint32_t*>(zeros), 0, shift);
#pragma unroll
      for (int j = 0; j < 4; ++j) zero[j] = Codes<KIND, T>::zero(static_cast<uint32_t>(rule.code<BITS>(four, j)));
    }
  }
};

template <int BITS>
struct Side<__nv_bfloat16, Subnormal<BITS>, false> {
  using C = Codes<Subnormal<BITS>, __nv_bfloat16>;

  typename C::Scale scale[4];

  __device__ __forceinline__ explicit Side(int) {}
  __device__ __forceinline__ void load(const GptqZeros&, const uint8_t* scales, const uint8_t*, int) {
    const uint2 two = *reinterpret_cast<const uint2*>(scales);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t twice = __byte_perm(j < 2 ? two.x : two.y, 0, j % 2 ? 0x3232 : 0x1010);
      scale[j] = C::scale(as_pair<__nv_bfloat16>(twice));
    }
  }
};

template <>
struct Side<__nv_bfloat16, Lanes, false> : Side<__nv_bfloat16, Subnormal<4>, false> {
  using Side<__nv_bfloat16, Subnormal<4>, false>::Side;
};

// A word's four pairs, or those of two words of bytes, of the lane's column j; times their scale but for AFTER.
template <typename T, class KIND, bool AFTER>
__device__ __forceinline__ void make_pairs(uint32_t (&pairs)[4], uint32_t low, uint32_t high,
                                           const Side<T, KIND, AFTER>& side, int j) {
  using C = Codes<KIND, T>;
  if constexpr (kIsSubnormal<KIND> && !AFTER) {
    pairs[0] = C::template weights<0>(low, side.scale[j]);
    pairs[1] = C::template weights<1>(low, side.scale[j]);
    pairs[2] = C::template weights<2>(high, side.scale[j]);
    pairs[3] = C::template weights<3>(high, side.scale[j]);
  } else {
    pairs[0] = C::template pair<0>(low, side.zero[j]);
    pairs[1] = C::template pair<1>(low, side.zero[j]);
    pairs[2] = C::template pair<2>(high, side.zero[j]);
    pairs[3] = C::template pair<3>(high, side.zero[j]);
    if constexpr (!AFTER && !KIND::kScaled) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = as_bits(__hmul2(as_pair<T>(pairs[i]), side.scale_pair[j]));
    }
  }
}

// A piece: 32 columns by 64 inputs by all rows.
template <typename T, class KIND, int ROW_TILES, bool AFTER>
__device__ __forceinline__ void multiply(float (&sums)[ROW_TILES][2][4], const uint8_t* words, const uint8_t* x,
                                         const Places<KIND>& places, const Side<T, KIND, AFTER>& side) {
  constexpr int BITS = KIND::kBits;
  // With eight tiles of rows ptxas would fetch activations of both halves at once, for which there are no registers.
  constexpr bool kLoop = kInLanes<KIND> && ROW_TILES == 8;
#pragma unroll(kLoop ? 1 : 2)
  for (int b = 0; b < 2; ++b) {
    uint32_t of_column[BITS / 4][4];
#pragma unroll
    for (int i = 0; i < BITS / 4; ++i) {
      const uint4 v = shared_vector(words + places.word(b, i));
      of_column[i][0] = v.x, of_column[i][1] = v.y, of_column[i][2] = v.z, of_column[i][3] = v.w;
    }
    uint32_t w[2][2][4];  // [tile][step]
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = 2 * t + e;
        uint32_t pairs[4];
        make_pairs(pairs, of_column[0][j], of_column[BITS / 4 - 1][j], side, j);
#pragma unroll
        for (int i = 0; i < 4; ++i) w[t][i / 2][i % 2 * 2 + e] = pairs[i];
      }
    }
    // Four tiles at a time where there are eight: a product's second step waits for its first, and so comes after the
    // others' first.
    constexpr int kAtATime = ROW_TILES == 8 ? 4 : 1;
#pragma unroll
    for (int r0 = 0; r0 < ROW_TILES; r0 += kAtATime) {
      uint4 v[kAtATime];
#pragma unroll
      for (int r = 0; r < kAtATime; ++r) {
        const uint8_t* const rows = x + (r0 + r) * 1024 + places.template row<kLoop>(b);
        if constexpr (kInLanes<KIND>) v[r] = shared_matrices(rows);
        else v[r] = shared_vector(rows);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int r = 0; r < kAtATime; ++r) {
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            mma_16816<T>(sums[r0 + r][t], w[t][step][0], w[t][step][1], w[t][step][2], w[t][step][3],
                         step == 0 ? v[r].x : v[r].z, step == 0 ? v[r].y : v[r].w);
          }
        }
      }
    }
  }
}

// The sums of pieces of one group, times its scale.
template <int PIECES, int ROW_TILES, class SIDE>
__device__ __forceinline__ void add_scaled(float (&sums)[ROW_TILES][2][4], const float (&of_piece)[PIECES][ROW_TILES][2][4],
                                           const SIDE& side) {
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      float sum = of_piece[0][r][c / 4][c % 4];
#pragma unroll
      for (int i = 1; i < PIECES; ++i) sum += of_piece[i][r][c / 4][c % 4];
      sums[r][c / 4][c % 4] += sum * side.scale[c / 2];
    }
  }
}

// What gives a block its registers: two of kHalfWarps and a warp for copies have as many as one of most_warps.
constexpr int most_threads(int row_tiles) { return row_tiles == 8 ? 32 * (most_warps(8) + 1) : 2 * 32 * (kHalfWarps + 1); }

// Unasked, ptxas spares registers for a second block of so many threads, which never comes. 0: not asked, as integers with
// 16 rows are a little faster so.
template <class KIND>
constexpr int least_blocks(int row_tiles) { return !KIND::kFloat && row_tiles == 2 ? 0 : 1; }

// Blocks: tiles of rows, then parts of K (a cluster), then columns.
template <typename T, class KIND, int ROW_TILES, bool AFTER>
__global__ void __launch_bounds__(most_threads(ROW_TILES), least_blocks<KIND>(ROW_TILES))
    mid_m_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                 const __grid_constant__ CUtensorMap scale_map, const __grid_constant__ CUtensorMap zero_map,
                 const __grid_constant__ Problem p) {
  constexpr int BITS = KIND::kBits;
  using S = Shape<BITS, ROW_TILES>;
  static_assert(!KIND::kScaled || !AFTER);  // a lane has 16 inputs of a piece: half of a slot's
  uint8_t* const ring = shared_memory(1024);
  auto* const full = reinterpret_cast<uint64_t*>(ring + p.layout.shared_bytes - 1024 - kMostStages * 16);
  uint64_t* const empty = full + kMostStages;
  const int warps = p.plan.column_warps * p.plan.k_warps, pieces = p.plan.k_warps * S::kPieces;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    prefetch_map(&x_map);
    prefetch_map(&w_map);
#pragma unroll 1
    for (int i = 0; i < p.layout.stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], warps);
    }
    barrier_init_fence();
  }
  __syncthreads();

  const int stages = (p.pieces + pieces - 1) / pieces;
  const int first = stages * blockIdx.y / p.plan.split, last = stages * (blockIdx.y + 1) / p.plan.split;
  if (warp == warps) {
    if (elect_one()) {
      bring<BITS, S, kInLanes<KIND>>(p, &x_map, &w_map, &scale_map, &zero_map, ring, full, empty, first, last);
    }
    __syncwarp();
    if (p.plan.split > 1) {
      cluster_sync();
      cluster_leave();
    }
    return;
  }
  begin_turn();

  const int column_warp = warp % p.plan.column_warps, k_warp = warp / p.plan.column_warps;
  const int g = lane / 4, q = lane % 4, column = column_warp * kWarpColumns + 4 * g;
  const Places<KIND> places(lane);
  const uint8_t* const words = ring + (column_warp * pieces + k_warp * S::kPieces) * S::kWordBytes;
  const uint8_t* const x = ring + p.layout.x_offset + k_warp * S::kPieces * S::kXBytes;
  // Where the scales of each of the warp's pieces lie; of weights that are scaled, lanes have one half of a piece each.
  int slot[S::kPieces];
#pragma unroll
  for (int i = 0; i < S::kPieces; ++i) {
    slot[i] = (2 * (k_warp * S::kPieces + i) + (AFTER ? 0 : q / 2)) / p.slots.halves;
  }
  const bool ends = p.slots.halves % (2 * S::kPieces) != 0;  // groups, between them
  uint32_t scale_at = p.layout.scale_offset + column * 2, zero_at = p.layout.zero_offset + column * BITS / 32 * 4;
  uint32_t zero_bit = KIND::kScaled ? q % 2 : column * BITS % 32;
  keep(scale_at), keep(zero_at), keep(zero_bit);
  // The pieces of a stage apart where registers allow it, so that none waits for another's sums.
  constexpr int kApart = ROW_TILES == 1 ? S::kPieces : 1;
  constexpr int kSets = !AFTER && ROW_TILES <= 2 ? S::kPieces : 1;
  float sums[kSets][ROW_TILES][2][4] = {};
  Side<T, KIND, AFTER> side(p.zeros.constant);
  int stage = 0, offset = 0;
  uint32_t round = 0;
  for (int at = first; at < last; ++at) {
    barrier_wait(&full[stage], round);
    const auto load_side = [&](int i) {
      const uint8_t* const at_stage = ring + offset;
      side.load(p.zeros, at_stage + scale_at + slot[i] * p.layout.scale_bytes,
                at_stage + zero_at + slot[i] * p.layout.zero_bytes, zero_bit);
    };
    const auto multiply_piece = [&](float (&to)[ROW_TILES][2][4], int i) {
      multiply<T, KIND, ROW_TILES, AFTER>(to, words + offset + i * S::kWordBytes, x + offset + i * S::kXBytes, places, side);
    };
    load_side(0);
    if constexpr (AFTER) {
      if (!ends) {
        float of_stage[kApart][ROW_TILES][2][4] = {};
#pragma unroll
        for (int i = 0; i < S::kPieces; ++i) multiply_piece(of_stage[i % kApart], i);
        add_scaled(sums[0], of_stage, side);
      } else {
#pragma unroll
        for (int i = 0; i < S::kPieces; ++i) {
          if (i > 0) load_side(i);
          float of_piece[1][ROW_TILES][2][4] = {};
          multiply_piece(of_piece[0], i);
          add_scaled(sums[0], of_piece, side);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < S::kPieces; ++i) {
        if (i > 0 && ends) load_side(i);
        multiply_piece(sums[i % kSets], i);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[stage]);
    offset += p.layout.stage_bytes;
    if (++stage == p.layout.stages) {
      stage = offset = 0;
      round ^= 1;
    }
  }

  // All stages that were brought have been read: their room is for the sums.
  sync_threads(1, warps * 32);
  auto* const shared = reinterpret_cast<float*>(ring);
  const int stride = p.plan.column_warps * kWarpColumns + 4;
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const auto sum = [&](int column) {
        float v = sums[0][r][column / 2][column % 2 * 2 + e];
        if constexpr (kSets > 1) v += sums[1][r][column / 2][column % 2 * 2 + e];
        return v;
      };
      store_vector(shared + (k_warp * S::kRows + 8 * r + 2 * q + e) * stride + column,
                   make_float4(sum(0), sum(1), sum(2), sum(3)));
    }
  }
  sync_threads(1, warps * 32);
  finish<T, KIND, S>(p, shared);
}

// Calls f(tiles, after) with the kernel's arguments for a problem, as types: those that there are of a kind.
template <class KIND, typename F>
void with_variant(const Problem& p, F f) {
  const auto with = [&](auto tiles) {
    if constexpr (!KIND::kScaled) {
      if (p.after) return f(tiles, std::true_type{});
    }
    if constexpr (KIND::kFloat) f(tiles, std::false_type{});
  };
  switch (p.plan.row_tiles) {
    case 1: return with(std::integral_constant<int, 1>{});
    case 2: return with(std::integral_constant<int, 2>{});
    case 4: return f(std::integral_constant<int, 4>{}, std::false_type{});
    default: return f(std::integral_constant<int, 8>{}, std::false_type{});
  }
}

}  // namespace qcore_cuda::mid_m
