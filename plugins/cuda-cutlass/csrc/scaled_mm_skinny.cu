// A scaled product for few rows (M <= 64), which takes as long as reading b does.
//
// A block has 32 columns of b and all of K, which its warps share: of each run of 512 bytes of a column
// warp w reads the 64 from 64w on. A thread (g, q) reads 16 neighbouring bytes of column g of each of
// the block's four column tiles; they are the fragments of two m16n8k32 products if K is thought
// permuted, and a is read with the same permutation. The warps' sums meet in shared memory, always in
// the same order.

#include "scaled_mm.cuh"
#include "scaled_mm.h"

namespace qcore_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTiles = 4;                // of eight columns
constexpr int kColumns = 8 * kTiles;
constexpr int kStep = 64 * kWarps;       // bytes of K that the block reads at a time

__device__ __forceinline__ uint4 load16(const uint8_t* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }
// b is read once: it should not push a out of the cache.
__device__ __forceinline__ uint4 stream16(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

template <typename Element, bool BY_BLOCK, int M_TILES>
struct Sums {
  using Acc = std::conditional_t<BY_BLOCK, float, typename Element::Acc>;
  Acc at[M_TILES][kTiles][4] = {};
};

template <typename Element, typename Out, bool BY_BLOCK, int M_TILES>
__global__ void __launch_bounds__(32 * kWarps) skinny_kernel(const uint8_t* __restrict__ a, int64_t a_stride,
                                                             const uint8_t* __restrict__ b, int64_t b_stride, int m,
                                                             int n, int k, ScaledEnd<Out> end, ScaledMM p) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, q = lane % 4;
  const int first_n = blockIdx.x * kColumns;

  // Columns and rows beyond the edge read the last one; their sums are not stored.
  const uint8_t* b_at[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) b_at[j] = b + min(first_n + 8 * j + g, n - 1) * b_stride + 16 * q;
  const uint8_t* a_at[M_TILES][2];
#pragma unroll
  for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) a_at[i][h] = a + min(16 * i + 8 * h + g, m - 1) * a_stride + 16 * q;
  }

  Sums<Element, BY_BLOCK, M_TILES> sums;
  // The next step's fragments are under way while this one's are multiplied.
  uint4 next[kTiles], next_rows[M_TILES][2];
  const auto load = [&](int at) {
    const bool inside = at + 16 * q < k;  // K is a multiple of 16
#pragma unroll
    for (int j = 0; j < kTiles; ++j) next[j] = inside ? stream16(b_at[j] + at) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool wanted = inside && (M_TILES > 1 || h == 0 || m > 8);
        next_rows[i][h] = wanted ? load16(a_at[i][h] + at) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  load(64 * warp);
  for (int at = 64 * warp; at < k; at += kStep) {
    uint4 now[kTiles];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) now[j] = next[j];
    uint4 rows[M_TILES][2];
#pragma unroll
    for (int i = 0; i < M_TILES; ++i) {
      rows[i][0] = next_rows[i][0];
      rows[i][1] = next_rows[i][1];
    }
    load(at + kStep);
#pragma unroll
    for (int i = 0; i < M_TILES; ++i) {
      const uint32_t low[4] = {rows[i][0].x, rows[i][1].x, rows[i][0].y, rows[i][1].y};
      const uint32_t high[4] = {rows[i][0].z, rows[i][1].z, rows[i][0].w, rows[i][1].w};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if constexpr (BY_BLOCK) {
          typename Element::Acc part[4] = {};
          mma(Element{}, part, low, now[j].x, now[j].y);
          mma(Element{}, part, high, now[j].z, now[j].w);
          const int block = at / 128;
          const int column = min(first_n + 8 * j + 2 * q, n - 1);
          const float sb0 = p.b_scale[block * p.b_scale_k + column / 128 * p.b_scale_n];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int row = min(16 * i + 8 * h + g, m - 1);
            const float s = p.a_scale[row * p.a_scale_m + block * p.a_scale_k] * sb0;
            sums.at[i][j][2 * h] += s * part[2 * h];
            sums.at[i][j][2 * h + 1] += s * part[2 * h + 1];
          }
        } else {
          mma(Element{}, sums.at[i][j], low, now[j].x, now[j].y);
          mma(Element{}, sums.at[i][j], high, now[j].z, now[j].w);
        }
      }
    }
  }

  using Acc = typename Sums<Element, BY_BLOCK, M_TILES>::Acc;
  __shared__ Acc of_warp[kWarps][16][kColumns + 2];
#pragma unroll
  for (int i = 0; i < M_TILES; ++i) {
    if (i > 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) of_warp[warp][8 * (e / 2) + g][8 * j + 2 * q + e % 2] = sums.at[i][j][e];
    }
    __syncthreads();
    for (int item = threadIdx.x; item < 16 * kColumns; item += 32 * kWarps) {
      const int row = item / kColumns, column = item % kColumns;
      Acc sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += of_warp[w][row][column];
      if (16 * i + row < m && first_n + column < n) end.store(16 * i + row, first_n + column, sum);
    }
  }
}

template <typename Element, typename Out, bool BY_BLOCK>
void launch(const ScaledMM& p) {
  const auto blocks = static_cast<unsigned>(ceil_div(p.n, kColumns));
  const auto run = [&](auto tiles) {
    skinny_kernel<Element, Out, BY_BLOCK, decltype(tiles)::value><<<blocks, 32 * kWarps, 0, p.stream>>>(
        static_cast<const uint8_t*>(p.a), p.a_stride, static_cast<const uint8_t*>(p.b), p.b_stride, p.m, p.n, p.k,
        ScaledEnd<Out>(p), p);
  };
  if (p.m <= 16) return run(std::integral_constant<int, 1>{});
  if (p.m <= 32) return run(std::integral_constant<int, 2>{});
  run(std::integral_constant<int, 4>{});
}

}  // namespace

void scaled_mm_skinny(const ScaledMM& p) {
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    if (!p.is_fp8) return launch<Int8, Out, false>(p);
    p.by_block ? launch<E4m3, Out, true>(p) : launch<E4m3, Out, false>(p);
  });
}

}  // namespace qcore_cuda
