// Few rows times packed integer weights: a stream of weights through tensor cores.
//
// A warp owns 32 (GPTQ) or 64 (AWQ) columns and a range of K. K is taken in blocks of 32 in which
// thread (g, q) = (lane / 4, lane % 4) has the inputs 8q ... 8q + 7: of these it holds the weights of
// its columns as B fragments of two m16n8k16 steps, and activations of rows g and g + 8, which are 16
// bytes each, as A fragments. The tensor core multiplies equal positions with each other, so that any
// order of K will do as long as both operands have it; none is ever rearranged between threads.
//
// Weights and activations come by cp.async into a ring of shared memory of which each thread reads
// what it has written itself (AWQ: what its warp has): there is no barrier in the loop. Within a group
// activations are multiplied with integers (code - zero), which half and bfloat16 hold exactly; the
// sums meet their scale in float32. Warps that share columns add up through shared memory, blocks
// that do through that of their cluster, always in the same order: results do not vary.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "op_support.h"
#include "w4_codes.cuh"

namespace qcore_cuda {

constexpr int kBlockK = 32;       // inputs that a warp takes at a time
constexpr int kMostThreads = 512;
constexpr int kMostSplit = 8;     // blocks of a cluster: what every device can do

struct SmallMParams {
  const void* a;  // [m, k], rows `a_stride` elements apart; k and a_stride multiples of 8, a of 16 bytes
  int64_t a_stride;
  int m, k;
  const uint32_t* w;
  int64_t w_stride;  // words in a row of w
  int w_rows;
  const void* scales;  // [groups, n]
  ScaleType scale_type;
  GptqZeros zeros;
  int group_blocks;  // blocks of kBlockK in a group
  int blocks;        // of kBlockK in all
  const void* bias;  // [n_out]; or null
  bool bias_float;   // float32; else the dtype of a
  void* out;         // [m, n_out], dense
  bool out_float;    // float32; else the dtype of a
  int n, n_out;      // columns that there are, and that are wanted
  // How the work is divided: warps of a block by columns and by K, blocks of a cluster by K.
  int column_warps, k_warps, split;
};

__device__ __forceinline__ void copy_16(void* to, const void* from, bool valid) {
  __pipeline_memcpy_async(to, from, 16, valid ? 0 : 16);
}

// ---- where weights lie -------------------------------------------------------------------------

// GPTQ: words along K. SHUFFLED: the order that `gptq_shuffle` gives, in which a pair is two
// neighbours; else a pair is (i, i + 4).
template <int BITS, bool SHUFFLED>
struct Gptq {
  static constexpr int kColumns = 32;      // of a warp
  static constexpr int kTiles = 4;         // of 8 columns: tile j has column 4g + j
  static constexpr int kVectors = BITS == 8 || BITS == 3 ? 2 : 1;  // of 16 bytes, a thread and block
  static constexpr bool kNeighbours = SHUFFLED || BITS == 8;
  static constexpr bool kAcrossLanes = false;
  static constexpr int kMostRowTiles = 2;

  struct Words {
    uint32_t at[kVectors][4];
  };

  static __device__ __forceinline__ int row(int block, int q, int v) {
    if (BITS == 8) return block * 8 + 2 * q + v;
    if (BITS == 4) return block * 4 + q;
    if (BITS == 3) return block * 3 + (24 * q + (v ? 23 : 0)) / 32;
    return block * 2 + q / 2;
  }
  template <typename Slot>
  static __device__ __forceinline__ void issue(const SmallMParams& p, int block, int column0, int lane, Slot slot) {
    const int column = column0 + 4 * (lane / 4);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int r = row(block, lane % 4, v);
      const bool valid = column < p.n && r < p.w_rows;
      copy_16(slot(v), valid ? p.w + r * p.w_stride + column : p.w, valid);
    }
  }
  template <typename Slot>
  static __device__ __forceinline__ void read(Words& words, int, Slot slot) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<uint4*>(words.at[v]) = *slot(v);
  }

  // The zero points of this thread's B fragments, and the scales of its sums: columns 8q ... 8q + 7.
  struct Ahead {
    uint32_t zeros;
    uint4 scales[2];
  };
  static __device__ __forceinline__ void fetch(const SmallMParams& p, int group, int column0, int lane, Ahead& next) {
    const int mine = column0 + 4 * (lane / 4), sums = column0 + 8 * (lane % 4);
    if (p.zeros.words && mine < p.n) next.zeros = p.zeros.four<BITS>(group, mine);
    if (sums < p.n) {
      const int64_t first = static_cast<int64_t>(group) * p.n + sums;
      if (p.scale_type == ScaleType::kFloat) {
        const auto* from = reinterpret_cast<const uint4*>(static_cast<const float*>(p.scales) + first);
        next.scales[0] = __ldg(from);
        next.scales[1] = __ldg(from + 1);
      } else {
        next.scales[0] = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.scales) + first));
      }
    }
  }
  template <typename T>
  using Zeros = typename Codes<BITS, T>::Zero[4];
  template <typename T>
  static __device__ __forceinline__ void zeros(const SmallMParams& p, const Ahead& next, Zeros<T>& z) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      z[j] = Codes<BITS, T>::zero(p.zeros.words ? p.zeros.code<BITS>(next.zeros, j) : p.zeros.constant);
    }
  }
  // Scale of tile j's columns 2q and 2q + 1, which are 8q + j and 8q + 4 + j.
  static __device__ __forceinline__ void scales(const SmallMParams& p, const Ahead& next, float2 (&s)[kTiles]) {
    float flat[8];
    if (p.scale_type == ScaleType::kFloat) {
      const float4 a = *reinterpret_cast<const float4*>(&next.scales[0]);
      const float4 b = *reinterpret_cast<const float4*>(&next.scales[1]);
      flat[0] = a.x, flat[1] = a.y, flat[2] = a.z, flat[3] = a.w;
      flat[4] = b.x, flat[5] = b.y, flat[6] = b.z, flat[7] = b.w;
    } else {
      const uint32_t words[4] = {next.scales[0].x, next.scales[0].y, next.scales[0].z, next.scales[0].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = scale_pair(words[i], p.scale_type);
        flat[2 * i] = two.x;
        flat[2 * i + 1] = two.y;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) s[j] = {flat[j], flat[4 + j]};
  }

  template <typename T, typename Multiply>
  static __device__ __forceinline__ void multiply(const Words& words, int q, const Zeros<T>& z, Multiply f) {
    using C = Codes<BITS, T>;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t w = words.at[0][j];
      uint32_t x = w, y = w;
      if constexpr (BITS == 8) y = words.at[1][j];
      if constexpr (BITS == 3) {
        const uint32_t v = __funnelshift_r(w, words.at[1][j], (24 * q) & 31);
        x = y = (v & 0xfffu) | ((v << 4) & 0x0fff0000u);
      }
      if constexpr (BITS == 2 && SHUFFLED) x = y = w >> (8 * (q & 1));
      if constexpr (BITS == 2 && !SHUFFLED) x = y = __byte_perm(w, 0, q & 1 ? 0x4342 : 0x4140);
      f(j, 0, C::template pair<0>(x, z[j]), C::template pair<1>(x, z[j]));
      f(j, 1, C::template pair<2>(y, z[j]), C::template pair<3>(y, z[j]));
    }
  }
  // The column, within the warp's, of a thread's sum: tile j, element e of (2q, 2q + 1).
  static __device__ __forceinline__ int column_of(int j, int q, int e) { return 8 * q + 4 * e + j; }
};

// AWQ: words along N, of which nibble i is column [0, 2, 4, 6, 1, 3, 5, 7][i]. Tile t has nibble t of
// word g; a pair is the words of two neighbouring inputs.
struct Awq {
  static constexpr int kColumns = 64;
  static constexpr int kTiles = 8;
  static constexpr int kVectors = 2;
  static constexpr bool kNeighbours = true;
  static constexpr bool kAcrossLanes = true;
  static constexpr int kMostRowTiles = 1;  // two would not fit the registers

  struct Words {
    uint32_t at[8];  // word g of inputs 8q ... 8q + 7
  };

  // 64 vectors: input 8q + i, words 4h ... 4h + 3 lie at 8i + 2q + h, so that reading meets no bank twice.
  template <typename Slot>
  static __device__ __forceinline__ void issue(const SmallMParams& p, int block, int column0, int lane, Slot slot) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = 4 * v + lane / 8, q = lane / 2 % 4, h = lane % 2;
      const int r = block * kBlockK + 8 * q + i, word = column0 / 8 + 4 * h;
      const bool valid = r < p.w_rows && word < p.w_stride;
      copy_16(slot(v), valid ? p.w + r * p.w_stride + word : p.w, valid);
    }
  }
  template <typename Slot>
  static __device__ __forceinline__ void read(Words& words, int lane, Slot slot) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // slot(v) points at this lane's vector; those of a warp lie side by side.
      const uint4* warp = slot(i / 4) - lane;
      words.at[i] = reinterpret_cast<const uint32_t*>(warp + 8 * (i % 4) + 2 * q + g / 4)[g % 4];
    }
  }

  struct Ahead {
    uint32_t zeros;
    uint4 scales[2];  // columns 16q ... 16q + 15
  };
  static __device__ __forceinline__ void fetch(const SmallMParams& p, int group, int column0, int lane, Ahead& next) {
    const int mine = column0 / 8 + lane / 4, sums = column0 + 16 * (lane % 4);
    if (mine < p.zeros.stride) next.zeros = p.zeros.words[group * p.zeros.stride + mine];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (sums + 8 * i >= p.n) continue;
      const int64_t first = static_cast<int64_t>(group) * p.n + sums + 8 * i;
      next.scales[i] = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.scales) + first));
    }
  }
  template <typename T>
  using Zeros = typename Codes<4, T>::Zero[8];
  template <typename T>
  static __device__ __forceinline__ void zeros(const SmallMParams&, const Ahead& next, Zeros<T>& z) {
#pragma unroll
    for (int t = 0; t < 8; ++t) z[t] = Codes<4, T>::zero((next.zeros >> (4 * t)) & 15);
  }
  static __device__ __forceinline__ int column_of(int t, int q, int e) {
    return 16 * q + 8 * e + (t < 4 ? 2 * t : 2 * t - 7);
  }
  static __device__ __forceinline__ void scales(const SmallMParams& p, const Ahead& next, float2 (&s)[kTiles]) {
    float flat[2][8];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t words[4] = {next.scales[e].x, next.scales[e].y, next.scales[e].z, next.scales[e].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = scale_pair(words[i], p.scale_type);
        flat[e][2 * i] = two.x;
        flat[e][2 * i + 1] = two.y;
      }
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) s[t] = {flat[0][t < 4 ? 2 * t : 2 * t - 7], flat[1][t < 4 ? 2 * t : 2 * t - 7]};
  }

  template <int HALF, typename T, typename Multiply>
  static __device__ __forceinline__ void multiply_half(const Words& words, const Zeros<T>& z, Multiply f) {
    using C = Codes<4, T>;
    uint32_t x[4];  // of two inputs each: nibbles 0 ... 3 of both, or 4 ... 7
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __byte_perm(words.at[2 * i], words.at[2 * i + 1], HALF ? 0x7632 : 0x5410);
    constexpr int t = 4 * HALF;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      f(t + 0, s, C::template pair<0>(x[2 * s], z[t + 0]), C::template pair<0>(x[2 * s + 1], z[t + 0]));
      f(t + 1, s, C::template pair<1>(x[2 * s], z[t + 1]), C::template pair<1>(x[2 * s + 1], z[t + 1]));
      f(t + 2, s, C::template pair<2>(x[2 * s], z[t + 2]), C::template pair<2>(x[2 * s + 1], z[t + 2]));
      f(t + 3, s, C::template pair<3>(x[2 * s], z[t + 3]), C::template pair<3>(x[2 * s + 1], z[t + 3]));
    }
  }
  template <typename T, typename Multiply>
  static __device__ __forceinline__ void multiply(const Words& words, int, const Zeros<T>& z, Multiply f) {
    multiply_half<0, T>(words, z, f);
    multiply_half<1, T>(words, z, f);
  }
};

// ---- the kernel --------------------------------------------------------------------------------

// Depth of the ring: the more of it, the more bytes are under way; the less, the more warps fit.
template <class W, int ROW_TILES>
constexpr int kStages = ROW_TILES == 1 ? (W::kVectors == 1 ? 6 : 5) : 4;

template <class W, int ROW_TILES>
constexpr int kSlots = W::kVectors + 2 * ROW_TILES;  // vectors of a thread and stage

template <class W>
__host__ __device__ constexpr int sum_stride(int column_warps) {
  return column_warps * W::kColumns + 4;  // floats; the 4 keep rows apart in banks
}

// Eight activations of a row as four pairs, in the order of the weights' pairs.
template <bool NEIGHBOURS>
__device__ __forceinline__ void to_pairs(const uint4& v, uint32_t (&pairs)[4]) {
  if constexpr (NEIGHBOURS) {
    pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
  } else {
    pairs[0] = __byte_perm(v.x, v.z, 0x5410);
    pairs[1] = __byte_perm(v.x, v.z, 0x7632);
    pairs[2] = __byte_perm(v.y, v.w, 0x5410);
    pairs[3] = __byte_perm(v.y, v.w, 0x7632);
  }
}

template <typename T>
__device__ __forceinline__ float from_16(T v) {
  if constexpr (std::is_same<T, __half>::value) return __half2float(v);
  else return __bfloat162float(v);
}

template <typename T>
__device__ __forceinline__ void store(const SmallMParams& p, int row, int column, float v) {
  if (p.bias) {
    v += p.bias_float ? static_cast<const float*>(p.bias)[column] : from_16(static_cast<const T*>(p.bias)[column]);
  }
  const int64_t at = static_cast<int64_t>(row) * p.n_out + column;
  if (p.out_float) {
    static_cast<float*>(p.out)[at] = v;
  } else if constexpr (std::is_same<T, __half>::value) {
    static_cast<T*>(p.out)[at] = __float2half_rn(v);
  } else {
    static_cast<T*>(p.out)[at] = __float2bfloat16_rn(v);
  }
}

template <class W, typename T, int ROW_TILES>
__global__ void __launch_bounds__(kMostThreads) small_m_kernel(const __grid_constant__ SmallMParams p) {
  constexpr int STAGES = kStages<W, ROW_TILES>, SLOTS = kSlots<W, ROW_TILES>, TILES = W::kTiles;
  extern __shared__ uint4 ring[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int column_warp = warp % p.column_warps, k_warp = warp / p.column_warps;
  const int column0 = (blockIdx.x * p.column_warps + column_warp) * W::kColumns;
  const int row0 = blockIdx.z * 16 * ROW_TILES;
  const int part = blockIdx.y * p.k_warps + k_warp, parts = p.split * p.k_warps;
  const int first = static_cast<int>(static_cast<int64_t>(p.blocks) * part / parts);
  const int last = static_cast<int>(static_cast<int64_t>(p.blocks) * (part + 1) / parts);

  const T* rows[2 * ROW_TILES];
  bool row_valid[2 * ROW_TILES];
#pragma unroll
  for (int i = 0; i < 2 * ROW_TILES; ++i) {
    const int row = row0 + 8 * i + g;
    row_valid[i] = row < p.m;
    rows[i] = static_cast<const T*>(p.a) + (row_valid[i] ? row * p.a_stride : 0);
  }
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();  // launched before its turn: wait until what came before is done
#endif
  const auto slot = [&](int stage, int s) { return ring + (stage * SLOTS + s) * blockDim.x + threadIdx.x; };
  const auto issue = [&](int block, int stage) {
    if (block < last) {
      W::issue(p, block, column0, lane, [&](int v) { return slot(stage, v); });
      const int k = block * kBlockK + 8 * q;
#pragma unroll
      for (int i = 0; i < 2 * ROW_TILES; ++i) {
        const bool valid = row_valid[i] && k < p.k;
        copy_16(slot(stage, W::kVectors + i), rows[i] + (valid ? k : 0), valid);
      }
    }
    __pipeline_commit();
  };

  float sums[ROW_TILES][TILES][4] = {}, of_group[ROW_TILES][TILES][4] = {};
  typename W::Ahead next = {}, current = {};  // scales stay as they came until the group's end
  typename W::template Zeros<T> zeros;
  // Counts down to the next group. What a group needs is fetched when the one before begins.
  int group = first / p.group_blocks, left = 0;
  if (first < last) W::fetch(p, group, column0, lane, next);
  const auto close_group = [&] {
    float2 scales[TILES];
    W::scales(p, current, scales);
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
        sums[r][j][0] += of_group[r][j][0] * scales[j].x;
        sums[r][j][1] += of_group[r][j][1] * scales[j].y;
        sums[r][j][2] += of_group[r][j][2] * scales[j].x;
        sums[r][j][3] += of_group[r][j][3] * scales[j].y;
#pragma unroll
        for (int c = 0; c < 4; ++c) of_group[r][j][c] = 0.0f;
      }
    }
  };
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) issue(first + s, s);

  int stage = 0;
  for (int block = first; block < last; ++block) {
    if (left == 0) {
      if (block != first) close_group();
      W::template zeros<T>(p, next, zeros);
      current = next;
      left = min(last, (group + 1) * p.group_blocks) - block;
      ++group;
      if (block + left < last) W::fetch(p, group, column0, lane, next);
    }
    --left;

    __pipeline_wait_prior(STAGES - 2);
    if constexpr (W::kAcrossLanes) __syncwarp();
    typename W::Words words;
    W::read(words, lane, [&](int v) { return slot(stage, v); });
    uint32_t a[2 * ROW_TILES][4];
#pragma unroll
    for (int i = 0; i < 2 * ROW_TILES; ++i) to_pairs<W::kNeighbours>(*slot(stage, W::kVectors + i), a[i]);
    issue(block + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    stage = stage + 1 == STAGES ? 0 : stage + 1;

    W::template multiply<T>(words, q, zeros, [&](int j, int step, uint32_t b0, uint32_t b1) {
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        mma_16816<T>(of_group[r][j], a[2 * r][2 * step], a[2 * r + 1][2 * step], a[2 * r][2 * step + 1],
                     a[2 * r + 1][2 * step + 1], b0, b1);
      }
    });
  }
  if (first < last) close_group();

  // The sums of all warps, side by side, over the ring.
  __pipeline_wait_prior(0);
  __syncthreads();
  float* shared = reinterpret_cast<float*>(ring);
  const int stride = sum_stride<W>(p.column_warps), tile = 16 * ROW_TILES * stride;
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* to = shared + k_warp * tile + (16 * r + 8 * half + g) * stride + column_warp * W::kColumns;
#pragma unroll
      for (int j = 0; j < TILES; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) to[W::column_of(j, q, e)] = sums[r][j][2 * half + e];
      }
    }
  }
  __syncthreads();

  const int columns = p.column_warps * W::kColumns, block_column0 = blockIdx.x * columns;
  const int wanted = min(16 * ROW_TILES, p.m - row0) * columns;  // columns: a power of two times 32
  for (int i = threadIdx.x; i < wanted; i += blockDim.x) {
    const int row = i / columns, column = i % columns;
    float* at = shared + row * stride + column;
    float sum = *at;
    for (int w = 1; w < p.k_warps; ++w) sum += at[w * tile];
    if (p.split > 1) {
      *at = sum;
    } else if (block_column0 + column < p.n_out) {
      store<T>(p, row0 + row, block_column0 + column, sum);
    }
  }
#if __CUDA_ARCH__ >= 900
  if (p.split > 1) {
    namespace cg = cooperative_groups;
    const cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    const int each = (wanted + p.split - 1) / p.split;
    const int begin = each * blockIdx.y, end = min(wanted, begin + each);
    for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
      const int row = i / columns, column = i % columns;
      float sum = 0.0f;
      for (int s = 0; s < p.split; ++s) sum += cluster.map_shared_rank(shared, s)[row * stride + column];
      if (block_column0 + column < p.n_out) store<T>(p, row0 + row, block_column0 + column, sum);
    }
    cluster.sync();  // nobody leaves while others read
  }
#endif
}

// ---- the launch --------------------------------------------------------------------------------

struct Division {
  int column_warps, k_warps, split;  // 0: chosen here
};

// Enough warps for every multiprocessor, each with enough of K to fill its ring; columns side by side
// where there are many rows, because their warps read the same activations.
inline Division divide(Division wish, int m, int n, int blocks, int columns_of_warp, int sm_count, bool clusters) {
  Division d = wish;
  const int tiles = static_cast<int>(ceil_div(n, columns_of_warp));
  if (d.column_warps == 0) d.column_warps = columns_of_warp == 32 && m > 4 && tiles > 1 ? 2 : 1;
  if (d.k_warps == 0) {
    d.k_warps = 8 / d.column_warps;
    while (d.k_warps > 1 && blocks < 2 * d.k_warps) d.k_warps /= 2;
  }
  const int64_t count = ceil_div(tiles, d.column_warps);
  if (d.split == 0) {
    d.split = 1;
    while (d.split < kMostSplit && 2 * count * d.split <= 2 * sm_count && blocks >= 4 * d.k_warps * d.split) d.split *= 2;
  }
  if (!clusters) d.split = 1;
  return d;
}

template <class W, typename T, int ROW_TILES>
void launch_small_m(const char* op, SmallMParams p, Division wish, int32_t device, cudaStream_t stream) {
  const auto kernel = small_m_kernel<W, T, ROW_TILES>;
  static std::array<std::atomic<int>, 64> known{};  // 0: not yet; else 1 + whether it is code for SM90 and later
  int state = known[device].load(std::memory_order_acquire);
  if (state == 0) {
    cudaFuncAttributes facts;
    QCORE_CHECK(cudaFuncGetAttributes(&facts, kernel) == cudaSuccess, op, ": no code for this device");
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    state = facts.ptxVersion >= 90 ? 2 : 1;
    known[device].store(state, std::memory_order_release);
  }
  const DeviceFacts& facts = device_facts(device);
  const Division d = divide(wish, p.m, p.n_out, p.blocks, W::kColumns, facts.sm_count, state == 2);
  p.column_warps = d.column_warps;
  p.k_warps = d.k_warps;
  p.split = d.split;
  const int threads = 32 * d.column_warps * d.k_warps;
  const size_t ring = sizeof(uint4) * threads * kSlots<W, ROW_TILES> * kStages<W, ROW_TILES>;
  const size_t sums = sizeof(float) * d.k_warps * 16 * ROW_TILES * sum_stride<W>(d.column_warps);

  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ceil_div(p.n_out, W::kColumns * d.column_warps)), d.split,
                        static_cast<unsigned>(ceil_div(p.m, 16 * ROW_TILES)));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = std::max(ring, sums);
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (state == 2) {
    // Its blocks may be placed while the kernel before it ends: they wait for that before they read.
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (d.split > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {1, static_cast<unsigned>(d.split), 1};
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, p);
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

template <class W, typename T>
void small_m_of(const char* op, const SmallMParams& p, Division wish, int32_t device, cudaStream_t stream) {
  if constexpr (W::kMostRowTiles == 2) {
    if (p.m > 16) return launch_small_m<W, T, 2>(op, p, wish, device, stream);
  }
  launch_small_m<W, T, 1>(op, p, wish, device, stream);
}

template <class W>
void small_m(const char* op, const SmallMParams& p, Division wish, ScalarType type, int32_t device,
             cudaStream_t stream) {
  if (type == ScalarType::Half) return small_m_of<W, __half>(op, p, wish, device, stream);
  small_m_of<W, __nv_bfloat16>(op, p, wish, device, stream);
}

}  // namespace qcore_cuda
