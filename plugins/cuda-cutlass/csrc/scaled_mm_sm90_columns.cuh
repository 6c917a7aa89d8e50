// SM90, few rows (M <= 64): a product that takes as long as reading b does. Every block has some of b's
// columns, all of K and nobody to wait for; or two that form a cluster have half of K each (BLOCKS).
//
// Rows and columns change places: b's columns are the rows of a wgmma, 64 at a time, a's rows its N. A
// block has up to 256 columns, a multiple of 8, as many as give every processor the same. Its four
// warpgroups take 64 columns each; where there are fewer, they share K: a stage of shared memory holds
// as many pieces of 128 bytes of K as warpgroups work on the same columns. A fifth group's first thread
// keeps the copy engine busy. Sums stay in registers to the end; then those of a column meet in shared
// memory, always in the same order, and leave it in rows of the output.
//
// Activations come as codes, piece by piece with b's; or the block makes codes of them itself, all rows and all of
// K, while b's first stages are on their way (scaled_mm_sm90_rows.cuh). That is one kernel less to wait for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "ceil_div.h"
#include "early_launch.cuh"
#include "scaled_mm.cuh"
#include "scaled_mm_sm90_atoms.cuh"
#include "sm90_ptx.cuh"

namespace qcore_cuda {
namespace {

using namespace sm90;

constexpr int kTile = 64;        // columns of b in a wgmma
constexpr int kPiece = 128;      // bytes of K
constexpr int kGroups = 4;       // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kThreads = kConsumers + 32;
constexpr int kMostColumns = kTile * kGroups;
constexpr int kMostStages = 16;
constexpr int kBarrierBytes = 1024;
// A wgmma reads 64 rows where a block's last columns may be fewer: what lies behind is read, and the sums
// are not used. Behind the last stage there must be something.
constexpr int kSlackBytes = kTile * kPiece;
constexpr int kSharedBytes = 227 * 1024;

__device__ __forceinline__ void sync_consumers() { sync_threads(1, kConsumers); }

// How a problem is cut, the same for all blocks.
struct Cut {
  int columns;  // of a block
  int shares;   // warpgroups that share K: 1, 2 or 4, and so pieces in a stage
  int steps;    // stages that K takes, of all blocks that share it
  int stages;   // in shared memory
  bool boxes;   // K is whole pieces, of which those of a stage are one copy
  int a_rows;   // of a box of a

  __host__ __device__ int tiles() const { return kGroups / shares; }
  __host__ __device__ int b_bytes() const { return shares * columns * kPiece; }
  __host__ __device__ int a_bytes(int rows) const { return shares * rows * kPiece; }  // of a step
  __host__ __device__ bool a_boxes(int rows) const { return boxes && a_rows == rows; }
};

// Where a's codes come from: memory. Or the block makes them (scaled_mm_sm90_rows.cuh).
struct Given {
  static constexpr bool kHere = false;
};

// `sums`: of every share, one behind the other; in a cluster each block stores half of them.
template <int BLOCKS, typename Out, typename Acc>
__device__ __forceinline__ void store_all(const ScaledMM& p, const Cut& cut, Acc* sums, int rows, int first, int rank) {
  const ScaledEnd<Out> end(p);
  const int width = cut.tiles() * kTile + 1;
  const int columns = min(cut.columns, p.n - first), items = p.m * columns;
  const auto add_shares = [&](int begin, int end_of_items, const auto& use) {
    for (int item = begin + threadIdx.x; item < end_of_items; item += kConsumers) {
      const int row = item / columns, column = item - row * columns;
      Acc* const at = sums + row * width + column;
      Acc sum = 0;
      for (int share = 0; share < cut.shares; ++share) sum += at[share * rows * width];
      use(row, column, at, sum);
    }
  };
  if constexpr (BLOCKS == 1) {
    add_shares(0, items, [&](int row, int column, Acc*, Acc sum) { end.store(row, first + column, sum); });
  } else {
    const int half = items / 2;
    add_shares(rank ? 0 : half, rank ? half : items, [&](int, int, Acc* at, Acc sum) { *at = sum; });  // for the other
    cluster_sync();
    add_shares(rank ? half : 0, rank ? items : half, [&](int row, int column, Acc* at, Acc sum) {
      const uint32_t word = word_of_block(at, 1 - rank);
      Acc others;
      __builtin_memcpy(&others, &word, 4);
      end.store(row, first + column, sum + others);
    });
    cluster_leave();
  }
}

// What one thread needs of the scales by block, piece after piece: it has two rows of every eight, and two
// columns, both in the same block.
template <int ROWS>
struct BlockScales {
  const float* a_at;
  const float* b_at;
  int64_t a_step, b_step;
  int left;  // pieces; beyond the end everything is zero
  int place[ROWS / 4];
  float a[ROWS / 4], b;

  __device__ __forceinline__ BlockScales(const ScaledMM& p, int column, int pair, int first, int stride) {
    a_at = p.a_scale + first * p.a_scale_k;
    b_at = p.b_scale + min(column, p.n - 1) / 128 * p.b_scale_n + first * p.b_scale_k;
    a_step = stride * p.a_scale_k;
    b_step = stride * p.b_scale_k;
    left = ((p.k + kPiece - 1) / kPiece - first + stride - 1) / stride;
    b = 0.0f;
#pragma unroll
    for (int i = 0; i < ROWS / 4; ++i) {
      place[i] = min(i / 2 * 8 + pair * 2 + i % 2, p.m - 1) * static_cast<int>(p.a_scale_m);
      a[i] = 0.0f;
    }
  }
  __device__ __forceinline__ void next() {
    if (left-- <= 0) return;
    b = __ldg(b_at);
#pragma unroll
    for (int i = 0; i < ROWS / 4; ++i) a[i] = __ldg(a_at + place[i]);
    a_at += a_step;
    b_at += b_step;
  }
  // Register i of a product has the rows' i / 4, i % 2.
  __device__ __forceinline__ float of(int i) const { return b * a[i / 4 * 2 + i % 2]; }
};

template <typename Element, int ROWS, bool BY_BLOCK, int BLOCKS, class Source>
__global__ void __launch_bounds__(kThreads, 1)
    columns_kernel(const __grid_constant__ CUtensorMap b_map, const __grid_constant__ CUtensorMap a_map,
                   const __grid_constant__ ScaledMM p, const Cut cut, const Source source) {
  using Acc = typename Element::Acc;
  QCORE_SHARED_BYTES(raw);
  uint8_t* const shared = raw + (-shared_address(raw) & 1023);
  auto* full = reinterpret_cast<uint64_t*>(shared);
  uint64_t* empty = full + kMostStages;
  uint8_t* const codes = shared + kBarrierBytes;  // if they are made here
  uint8_t* const stages = codes + (Source::kHere ? cut.steps * cut.a_bytes(ROWS) : 0);
  const int b_bytes = cut.b_bytes(), stage_bytes = b_bytes + (Source::kHere ? 0 : cut.a_bytes(ROWS));
  const int first = blockIdx.x / BLOCKS * cut.columns, rank = BLOCKS > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int first_step = cut.steps * rank / BLOCKS, steps = cut.steps * (rank + 1) / BLOCKS - first_step;

  if (threadIdx.x == kConsumers) {
    prefetch_map(&b_map);
    if constexpr (!Source::kHere) prefetch_map(&a_map);
    for (int i = 0; i < cut.stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kGroups);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (threadIdx.x >= kConsumers) {
    if (elect_one()) {
      const auto load_b = [&](int step, int stage) {
        const int piece = (first_step + step) * cut.shares;
        barrier_expect(&full[stage], b_bytes + (Source::kHere ? 0 : cut.a_bytes(cut.a_rows)));
        if (cut.boxes) {
          return load_boxes(stages + stage * stage_bytes, &b_map, &full[stage], piece, first, kEvictFirst);
        }
        for (int share = 0; share < cut.shares; ++share) {
          const int k = (piece + share) * kPiece;  // beyond the end zeros come
          load_box(stages + stage * stage_bytes + share * cut.columns * kPiece, &b_map, &full[stage], k, first,
                   kEvictFirst);
        }
      };
      const auto load_a = [&](int step, int stage) {
        if constexpr (Source::kHere) return;
        const int piece = (first_step + step) * cut.shares;
        if (cut.a_boxes(ROWS)) {
          return load_boxes(stages + stage * stage_bytes + b_bytes, &a_map, &full[stage], piece, 0, kEvictLast);
        }
        for (int share = 0; share < cut.shares; ++share) {
          const int k = (piece + share) * kPiece;
          load_box(stages + stage * stage_bytes + b_bytes + share * ROWS * kPiece, &a_map, &full[stage], k, 0,
                   kEvictLast);
        }
      };
      for (int step = 0; step < cut.stages; ++step) load_b(step, step);
      begin_turn();
      for (int step = 0; step < cut.stages; ++step) load_a(step, step);
      int stage = 0;
      uint32_t round = 0;
      for (int step = cut.stages; step < steps; ++step) {
        barrier_wait(&empty[stage], round);
        load_b(step, stage);
        load_a(step, stage);
        if (++stage == cut.stages) {
          stage = 0;
          round ^= 1;
        }
      }
    }
    return;
  }

  using A = Atom<Element, ROWS>;
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int tile = group % cut.tiles(), share = group / cut.tiles();
  const bool first_of_group = threadIdx.x % 128 == 0;
  const bool has_columns = tile * kTile < cut.columns;

  // What the end needs is in the cache by then.
  if (threadIdx.x < cut.columns && first + threadIdx.x < p.n) {
    const int n = first + threadIdx.x;
    if (p.b_per_channel) prefetch(p.b_scale + n);
    if (p.bias) prefetch(static_cast<const uint16_t*>(p.bias) + n);
    if (p.azp_adj) prefetch(p.azp_adj + n);
  }
  begin_turn();

  ScaledMM known = p;
  if constexpr (Source::kHere) {
    auto* const room = reinterpret_cast<typename Source::Room*>(shared + 512);
    static_assert(2 * kMostStages * sizeof(uint64_t) <= 512 && sizeof(typename Source::Room) <= kBarrierBytes - 512);
    source.quantize(p.m, cut.steps * cut.shares, codes, room);
    sync_consumers();
    source.tell(known, room);
  }

  using Sums = typename A::Register[ROWS / 2];
  Sums d;
#pragma unroll
  for (int i = 0; i < ROWS / 2; ++i) d[i] = 0;
  const uint8_t* const of_b = stages + (share * cut.columns + tile * kTile) * kPiece;
  const uint8_t* const of_a = (Source::kHere ? codes : stages + b_bytes) + share * ROWS * kPiece;
  const int a_step = Source::kHere ? cut.a_bytes(ROWS) : 0;  // codes made here lie step after step
  int stage = 0, step_of_a = 0;
  uint32_t round = 0;
  const auto advance = [&] {
    if (++stage == cut.stages) {
      stage = 0;
      round ^= 1;
    }
  };
  const auto multiply = [&](Sums& to) {
    barrier_wait(&full[stage], round);
    fence_registers(to);
    cute::warpgroup_arrive();
    const uint64_t b = matrix_descriptor(of_b + stage * stage_bytes);
    const uint64_t a = matrix_descriptor(of_a + (Source::kHere ? step_of_a++ * a_step : stage * stage_bytes));
#pragma unroll
    for (int i = 0; i < kPiece / 32; ++i) {
      wgmma<typename A::Type>(b + 2 * i, a + 2 * i, to, !BY_BLOCK || i > 0, std::make_index_sequence<ROWS / 2>{});
    }
    cute::warpgroup_commit_batch();
  };
  if (!has_columns) {
    // By one thread: the others, whom no product keeps together, could miss that a stage was full.
    for (int step = 0; first_of_group && step < steps; ++step, advance()) {
      barrier_wait(&full[stage], round);
      barrier_arrive(&empty[stage]);
    }
  } else if constexpr (BY_BLOCK) {
    // In float32 as they are made; meanwhile the other groups have the tensor cores.
    BlockScales<ROWS> scales(p, first + tile * kTile + 16 * warp + lane / 4, lane % 4,
                             first_step * cut.shares + share, cut.shares);
    for (int step = 0; step < steps; ++step, advance()) {
      scales.next();
      Sums part;
      multiply(part);
      cute::warpgroup_wait<0>();
      fence_registers(part);
      if (first_of_group) barrier_arrive(&empty[stage]);
#pragma unroll
      for (int i = 0; i < ROWS / 2; ++i) d[i] = fmaf(part[i], scales.of(i), d[i]);
    }
  } else {
    multiply(d);
    for (int step = 1; step < steps; ++step) {
      const int before = stage;
      advance();
      multiply(d);
      cute::warpgroup_wait<1>();
      fence_registers(d);
      if (first_of_group) barrier_arrive(&empty[before]);
    }
    cute::warpgroup_wait<0>();
    fence_registers(d);
  }

  // All that was fetched has been read, so the stages' memory is free.
  sync_consumers();
  auto* sums = reinterpret_cast<Acc*>(stages);
  const int width = cut.tiles() * kTile + 1;  // rows begin in different banks
#pragma unroll
  for (int i = 0; i < ROWS / 2; ++i) {
    const int column = tile * kTile + 16 * warp + lane / 4 + (i % 4 / 2) * 8;
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    Acc value;
    __builtin_memcpy(&value, &d[i], 4);
    sums[(share * ROWS + row) * width + column] = value;
  }
  sync_consumers();
  if (p.out_bf16) {
    store_all<BLOCKS, __nv_bfloat16>(known, cut, sums, ROWS, first, rank);
  } else {
    store_all<BLOCKS, __half>(known, cut, sums, ROWS, first, rank);
  }
}

// Calls `use` with the number of rows of a wgmma for m rows, as a constant: up to 64, with scales by block up to 32.
template <bool BY_BLOCK, typename Use>
void with_rows(int m, Use use) {
  if (m <= 8) return use(std::integral_constant<int, 8>{});
  if (m <= 16) return use(std::integral_constant<int, 16>{});
  if (BY_BLOCK || m <= 32) return use(std::integral_constant<int, 32>{});
  if constexpr (!BY_BLOCK) use(std::integral_constant<int, 64>{});
}

// As few rounds of blocks as can be, and in them the same number of columns for all.
template <class Source>
Cut cut_columns(const ScaledMM& p, int rows, int blocks = 1) {
  Cut cut{};
  const int64_t clusters = p.sm_count / blocks, rounds = ceil_div(p.n, clusters * kMostColumns);
  const int step = p.by_block ? 16 : 8;
  cut.columns = static_cast<int>(ceil_div(ceil_div(p.n, rounds * clusters), step) * step);
  cut.shares = cut.columns <= kTile ? 4 : cut.columns <= 2 * kTile ? 2 : 1;
  cut.steps = static_cast<int>(ceil_div(p.k, cut.shares * kPiece));
  cut.boxes = p.k % kPiece == 0;
  // Beyond the last row zeros come, but slowly; up to 16 rows they cost no more than a copy for each piece does.
  cut.a_rows = rows > 16 ? std::min(p.m, rows) : rows;
  int room = kSharedBytes - 1024 - kBarrierBytes - kSlackBytes, stage = cut.b_bytes();
  if (Source::kHere) room -= cut.steps * cut.a_bytes(rows);
  else stage += cut.a_bytes(rows);
  cut.stages = std::min({kMostStages, room / stage, std::max(cut.steps / blocks, 1)});
  return cut;
}

}  // namespace
}  // namespace qcore_cuda
