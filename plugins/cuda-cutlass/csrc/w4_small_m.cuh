// Few rows times packed weights, integers or floats: a stream of weights through tensor cores.
//
// A warp owns 32 (GPTQ) or 64 (AWQ) columns and a range of K. Weights are the left operand, 16 columns a
// tile, activations the right one, 8 rows a tile: see w4_layouts.cuh. Each thread keeps the words of
// two or four blocks of K under way into its registers. Activations of 128 inputs at a time are
// brought to shared memory by cp.async, once for all warps that have the same K, two such pieces ahead.
// Within a group activations are multiplied with integers (code - zero), which half and bfloat16 hold
// exactly; the sums meet their scale in float32 (NVFP4: weights have theirs). Warps that share columns add up through shared
// memory, blocks that do through that of their cluster, always in the same order: results do not vary.
#pragma once

#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <atomic>

#include "early_launch.cuh"
#include "w4_layouts.cuh"

namespace qcore_cuda {

constexpr int kMostThreads = 512;
constexpr int kMostSplit = 8;  // blocks of a cluster: what every device can do
constexpr int kPiece = 4;      // blocks of K whose activations come together
constexpr int kPieces = 3;     // that there is room for: one in use, two under way

template <class W>
constexpr int kColumns = 8 * W::kOwn;  // of a warp

// Vectors of 16 bytes that a piece has: for each block and tile of rows those of a warp's lanes.
template <int ROW_TILES>
constexpr int kPieceVectors = kPiece * ROW_TILES * 32;

template <class W>
__host__ __device__ constexpr int sum_stride(int column_warps) {
  return column_warps * kColumns<W> + 4;  // floats; the 4 keep rows apart in banks
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

__device__ __forceinline__ uint4 shared_vector(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

// A barrier for the warps that share a range of K.
__device__ __forceinline__ void sync_slice(int k_warp, int column_warps) {
  if (column_warps == 1) __syncwarp();
  else asm volatile("bar.sync %0, %1;" ::"r"(1 + k_warp), "r"(32 * column_warps) : "memory");
}

template <class W, typename T, int ROW_TILES>
__global__ void __launch_bounds__(W::most_threads(ROW_TILES)) small_m_kernel(const __grid_constant__ SmallMParams p) {
  constexpr int DEPTH = W::depth(ROW_TILES), TILES = W::kOwn / 2;
  constexpr bool kScaled = W::Kind::kScaled;
  extern __shared__ uint4 shared_vectors[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int column_warp = warp % p.column_warps, k_warp = warp / p.column_warps;
  const int column0 = (blockIdx.x * p.column_warps + column_warp) * kColumns<W>;
  const int row0 = blockIdx.z * 8 * ROW_TILES;
  const int part = blockIdx.y * p.k_warps + k_warp, parts = p.split * p.k_warps;
  const int pieces = (p.blocks + kPiece - 1) / kPiece;
  const int first = static_cast<int>(static_cast<int64_t>(pieces) * part / parts) * kPiece;
  const int last = min(p.blocks, static_cast<int>(static_cast<int64_t>(pieces) * (part + 1) / parts) * kPiece);

  typename W::Stream stream(p, first, last, column0, lane);
  typename W::Words words[DEPTH] = {};
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) stream.next(words[d], first + d);
  typename W::Group next;
  // Counts down to the next group. What a group needs is fetched when the one before begins.
  int group = first / p.group_blocks, left = 0;
  typename W::Groups groups(p, group, column0, lane, next);
  groups.fetch(next, first < last);
  begin_turn();

  // Activations: vector `at` of each row of a piece goes where the lane that multiplies it finds it.
  uint4* const ring = shared_vectors + k_warp * kPieces * kPieceVectors<ROW_TILES>;
  const uint32_t ring_address = static_cast<uint32_t>(__cvta_generic_to_shared(ring + lane));
  const int of_slice = column_warp * 32 + lane, at = of_slice % (4 * kPiece);
  const int first_row = of_slice / (4 * kPiece), row_step = 2 * p.column_warps;
  const T* const a = static_cast<const T*>(p.a) + row0 * p.a_stride + 8 * at;
  const auto bring = [&](int block, int slot) {
    if (block < last) {
      uint4* to = ring + slot * kPieceVectors<ROW_TILES> + (at / 4) * ROW_TILES * 32 + at % 4;
      const bool inside = block * kBlockK + 8 * at < p.k;
#pragma unroll 1
      for (int row = first_row; row < 8 * ROW_TILES; row += row_step) {
        const bool valid = inside && row0 + row < p.m;
        const void* from = valid ? static_cast<const void*>(a + row * p.a_stride + block * kBlockK) : p.a;
        __pipeline_memcpy_async(to + 4 * row, from, 16, valid ? 0 : 16);
      }
    }
    __pipeline_commit();
  };
#pragma unroll
  for (int i = 0; i < kPieces - 1; ++i) bring(first + i * kPiece, i);

  float sums[ROW_TILES][TILES][4] = {}, of_group[ROW_TILES][TILES][4] = {};
  float scales[W::kOwn] = {};  // in float32 at once: a copy of what `next` has would wait for the next group
  typename W::template Zeros<T> zeros;
  const auto close_group = [&] {
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sums[r][t][c] += of_group[r][t][c] * scales[2 * t + c / 2];
          of_group[r][t][c] = 0.0f;
        }
      }
    }
  };

  for (int begin = first, slot = 0; begin < last; begin += kPiece) {
    __pipeline_wait_prior(kPieces - 2);
    sync_slice(k_warp, p.column_warps);
    bring(begin + (kPieces - 1) * kPiece, slot == 0 ? kPieces - 1 : slot - 1);  // over what all are done with
    const uint32_t piece = ring_address + slot * kPieceVectors<ROW_TILES> * 16;
    slot = slot + 1 == kPieces ? 0 : slot + 1;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const int block = begin + i;
      if (block >= last) break;
      if (left == 0) {
        if (!kScaled && block != first) close_group();
        groups.template begin<T>(p, next, zeros);
        if constexpr (!kScaled) W::scales(p, next, scales);
        left = min(last, (group + 1) * p.group_blocks) - block;
        ++group;
        groups.fetch(next, block + left < last);
      }
      --left;
      uint32_t x[ROW_TILES][4];
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        to_pairs<W::kNeighbours>(shared_vector(piece + (i * ROW_TILES + r) * 512), x[r]);
      }
      W::template multiply<T>(words[i % DEPTH], q, zeros,
                              [&](int t, int step, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          mma_16816<T>((kScaled ? sums : of_group)[r][t], w0, w1, w2, w3, x[r][2 * step], x[r][2 * step + 1]);
        }
      });
      stream.next(words[i % DEPTH], block + DEPTH);
    }
  }
  if (!kScaled && first < last) close_group();
  if constexpr (W::Kind::kFloat) {
    if (p.column_scales) {
      const int column = column0 + W::kOwn * g;
#pragma unroll
      for (int j = 0; j < W::kOwn; ++j) {
        const float scale = column < p.n ? p.column_scales[column + j] * W::Kind::kMore : 0.0f;
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          sums[r][j / 2][j % 2 * 2] *= scale;
          sums[r][j / 2][j % 2 * 2 + 1] *= scale;
        }
      }
    }
  }

  // The sums of all warps, side by side, over the activations. This thread's are rows 2q and 2q + 1.
  __pipeline_wait_prior(0);
  __syncthreads();
  float* shared = reinterpret_cast<float*>(shared_vectors);
  const int stride = sum_stride<W>(p.column_warps), tile = 8 * ROW_TILES * stride;
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* to = shared + k_warp * tile + (8 * r + 2 * q + e) * stride + column_warp * kColumns<W> + W::kOwn * g;
#pragma unroll
      for (int t = 0; t < TILES; t += 2) {
        *reinterpret_cast<float4*>(to + 2 * t) =
            make_float4(sums[r][t][e], sums[r][t][2 + e], sums[r][t + 1][e], sums[r][t + 1][2 + e]);
      }
    }
  }
  __syncthreads();

  const int columns = p.column_warps * kColumns<W>, block_column0 = blockIdx.x * columns;
  const int log_columns = 31 - __clz(columns);
  const int wanted = min(8 * ROW_TILES, p.m - row0) * columns;  // columns: a power of two times 32
  for (int i = threadIdx.x; i < wanted; i += blockDim.x) {
    const int row = i >> log_columns, column = i & (columns - 1);
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
      const int row = i >> log_columns, column = i & (columns - 1);
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

// What a block has in shared memory: activations under way, later its warps' sums.
template <class W, int ROW_TILES>
size_t shared_bytes(const Division& d) {
  const size_t ring = sizeof(uint4) * d.k_warps * kPieces * kPieceVectors<ROW_TILES>;
  const size_t sums = sizeof(float) * d.k_warps * 8 * ROW_TILES * sum_stride<W>(d.column_warps);
  return std::max(ring, sums);
}

// The more rows, the more warps side by side, which share activations. Blocks of 16 warps where one for
// each multiprocessor is all there is work for, else of 8; and clusters where even that leaves some idle.
inline Division divide(Division d, int m, int n, int blocks, int columns_of_warp, int sm_count, bool clusters) {
  const int tiles = static_cast<int>(ceil_div(n, columns_of_warp));
  const int pieces = static_cast<int>(ceil_div(blocks, kPiece));
  if (d.column_warps == 0) {
    d.column_warps = m <= 2 ? 1 : m <= 8 ? 2 : 4;
    while (d.column_warps > 1 && d.column_warps > tiles) d.column_warps /= 2;
  }
  const int64_t count = ceil_div(tiles, d.column_warps);
  if (d.k_warps == 0) {
    d.k_warps = (count <= sm_count ? 16 : 8) / d.column_warps;
    while (d.k_warps > 1 && pieces < d.k_warps) d.k_warps /= 2;
  }
  if (d.split == 0) {
    d.split = 1;
    while (d.split < kMostSplit && 2 * count * d.split <= sm_count && pieces >= 2 * d.k_warps * d.split) d.split *= 2;
  }
  if (!clusters) d.split = 1;
  return d;
}

template <class W, typename T, int ROW_TILES>
void launch_small_m(const char* op, SmallMParams p, Division wish, int32_t device, cudaStream_t stream) {
  const auto kernel = small_m_kernel<W, T, ROW_TILES>;
  const DeviceFacts& facts = device_facts(device);
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), facts.most_shared, device, allowed);
  Division d = divide(wish, p.m, p.n_out, p.blocks, kColumns<W>, facts.sm_count, facts.sm90_code);
  constexpr int most_warps = W::most_threads(ROW_TILES) / 32;
  d.column_warps = std::min(d.column_warps, most_warps);
  d.k_warps = std::min(d.k_warps, most_warps / d.column_warps);
  while (d.k_warps > 1 && shared_bytes<W, ROW_TILES>(d) > static_cast<size_t>(facts.most_shared)) d.k_warps /= 2;
  p.column_warps = d.column_warps;
  p.k_warps = d.k_warps;
  p.split = d.split;
  const int threads = 32 * d.column_warps * d.k_warps;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n_out, kColumns<W> * d.column_warps)), d.split,
                  static_cast<unsigned>(ceil_div(p.m, 8 * ROW_TILES)));
  const LaunchShape shape{grid, static_cast<unsigned>(threads), shared_bytes<W, ROW_TILES>(d), stream,
                          facts.sm90_code && p.early, dim3(1, d.split, 1)};
  launch_kernel(op, shape, kernel, p);
}

template <class W, typename T>
void small_m_of(const char* op, const SmallMParams& p, Division wish, int32_t device, cudaStream_t stream) {
  if (p.m <= 8) return launch_small_m<W, T, 1>(op, p, wish, device, stream);
  if constexpr (W::kMostRowTiles == 4) {
    if (p.m > 16) return launch_small_m<W, T, 4>(op, p, wish, device, stream);
  }
  launch_small_m<W, T, 2>(op, p, wish, device, stream);
}

template <class W>
void small_m(const char* op, const SmallMParams& p, Division wish, ScalarType type, int32_t device,
             cudaStream_t stream) {
  if (type == ScalarType::Half) return small_m_of<W, __half>(op, p, wish, device, stream);
  small_m_of<W, __nv_bfloat16>(op, p, wish, device, stream);
}

}  // namespace qcore_cuda
