// SM90, FP8 and int8, many rows: tiles of 64, 128 or 256 rows and 128 columns.
//
// A block of threads has a processor for itself and takes tile after tile. A warp keeps the copy engine
// busy, and two warpgroups multiply: each has half of the rows or, of 64 rows, every other piece of K. Two
// blocks with tiles side by side form a cluster, in which each fetches half of a's rows, for both.
//
// With scales by block (FP8; a has one for each row and 128 of K, b one for each 128 x 128; tiles of 64 rows, larger ones
// are scaled_mm_sm90_blocks.cuh's), the tensor core adds 128 products, and those sums are scaled and added in float32. A
// warp of its own brings the scales.
//
// What is finished leaves by the copy engine, too, while the next tile is multiplied.
//
// Where tiles do not fill the processors, the last ones can be shared: each cluster has as much of K of them as any
// other, of one tile or of neighbours. Who has the end of a tile adds what the others leave in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "early_launch.cuh"
#include "handed_sums.cuh"
#include "scaled_mm.cuh"
#include "scaled_mm_sm90_atoms.cuh"
#include "scaled_mm_sm90_store.cuh"
#include "scaled_mm_sm90_walk.cuh"

namespace qcore_cuda {
namespace {

using namespace sm90;

constexpr int kPiece = 128;  // bytes of K: a row of shared memory, and what a scale by block is for
constexpr int kTileN = 128;
constexpr int kGroups = 2;
constexpr int kConsumers = 128 * kGroups;
constexpr int kThreads = kConsumers + 128;  // registers are given to whole warpgroups
constexpr int kWarpsThatStore = kConsumers / 32;
constexpr int kSharedBytes = 227 * 1024;

constexpr int kRegisters = kTileN / 2;  // of a thread, for 64 rows

// Each warpgroup has PARTS times 64 rows, of its own or, if they take turns along K, the same.
template <int PARTS, bool ALONG_K, int CLUSTER>
struct Shape {
  static constexpr bool kAlongK = ALONG_K;
  static constexpr int kParts = PARTS, kCluster = CLUSTER;
  static constexpr int kRows = 64 * PARTS * (ALONG_K ? 1 : kGroups);
  static constexpr int kABytes = kRows * kPiece, kBBytes = kTileN * kPiece;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kBoxes = PARTS == 1 ? 2 : 1;  // that a warp has room for
  static constexpr int kStoreBytes = kWarpsThatStore * kBoxes * kBoxBytes;
  static constexpr int kColumnBytes = kGroups * kTileN * 12;
  static constexpr int kExchangeBytes = ALONG_K ? kRows * kTileN * 4 : 0;
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kFours = PARTS * kRegisters / 4 / (ALONG_K ? kGroups : 1);  // of a thread's sums of a tile
  static constexpr int kScales = kRows + 4;
  static constexpr int kStages = (kSharedBytes - 1024 - kStoreBytes - kColumnBytes - kExchangeBytes - kBarrierBytes) /
                                 (kStageBytes + kScales * 4);
};

template <typename S>
__device__ __forceinline__ void fetch(const Tiles& tiles, int m, const CUtensorMap* a_map, const CUtensorMap* a_rest,
                                      const CUtensorMap* b_map, uint8_t* stages, uint64_t* full, uint64_t* empty) {
  constexpr uint16_t kAll = (1 << S::kCluster) - 1;
  constexpr int kPart = S::kRows / S::kCluster;
  const int rank = S::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  Walk<S::kCluster> walk(tiles);
  const auto load_b = [&](const Place& at, int step, int stage) {
    const int column = (at.pair * S::kCluster + rank) * kTileN;  // beyond the end zeros come
    barrier_expect(&full[stage], S::kBBytes + min(S::kRows, m - at.m * S::kRows) * kPiece);
    load_box(stages + stage * S::kStageBytes + S::kABytes, b_map, &full[stage], step * kPiece, column, kEvictNormal);
  };
  int early = 0;  // stages whose part of b comes before this kernel's turn
  if (walk.more()) {
    const Place at = walk.at();
    for (early = 0; early < min(S::kStages, at.last - at.first); ++early) load_b(at, at.first + early, early);
  }
  begin_turn();
  int stage = 0;
  uint32_t round = 1;  // the first time the stages are free
  for (; walk.more(); walk.next()) {
    const Place at = walk.at();
    const int row = at.m * S::kRows + rank * kPart;
    const CUtensorMap* const map = row + kPart <= m ? a_map : a_rest;
    for (int step = at.first; step < at.last; ++step) {
      barrier_wait(&empty[stage], round);
      if (early-- <= 0) load_b(at, step, stage);
      uint8_t* const to = stages + stage * S::kStageBytes;
      if constexpr (S::kCluster == 1) {
        load_box(to, map, &full[stage], step * kPiece, row, kEvictNormal);
      } else if (row < m) {
        load_box_for(kAll, to + rank * kPart * kPiece, map, &full[stage], step * kPiece, row);
      }
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    }
  }
}

// The scales by block of a's rows and, behind them, b's, beside the stage. Nobody waits for them here: the
// copies themselves arrive at the barrier, once for each lane.
template <typename S>
__device__ __forceinline__ void fetch_scales(const ScaledMM& p, const Tiles& tiles, float* scales, uint64_t* full,
                                             uint64_t* empty) {
  static_assert(S::kCluster == 1);
  const int lane = threadIdx.x % 32;
  begin_turn();
  int stage = 0;
  uint32_t round = 1;
  for (Walk<1> walk(tiles); walk.more(); walk.next()) {
    const Place at = walk.at();
    const float* a = p.a_scale + at.first * p.a_scale_k;
    const float* b = p.b_scale + min(at.pair, (p.n - 1) / kTileN) * p.b_scale_n + at.first * p.b_scale_k;
    int row[S::kRows / 32];
#pragma unroll
    for (int i = 0; i < S::kRows / 32; ++i) {
      row[i] = min(at.m * S::kRows + i * 32 + lane, p.m - 1) * static_cast<int>(p.a_scale_m);
    }
#pragma unroll 1  // a warp here has few registers
    for (int step = at.first; step < at.last; ++step, a += p.a_scale_k, b += p.b_scale_k) {
      barrier_wait(&empty[stage], round);
      float* const to = scales + stage * S::kScales;
#pragma unroll
      for (int i = 0; i < S::kRows / 32; ++i) copy_float(to + i * 32 + lane, a + row[i]);
      if (lane == 0) copy_float(to + S::kRows, b);
      barrier_arrive_after_copies(&full[stage]);
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    }
  }
}

__device__ __forceinline__ void sync_consumers() { sync_threads(1 + kGroups, kConsumers); }

// The two warpgroups' sums of the same rows and columns: each leaves with the total of half of the columns,
// the first half of its registers.
template <typename Sum>
__device__ __forceinline__ void add_groups(Sum (&sums)[kRegisters], Sum* room, int group) {
  const int thread = threadIdx.x % 128, other = 1 - group;
  constexpr int kHalf = kRegisters / 2;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) room[(group * kHalf + i) * 128 + thread] = group == 0 ? sums[kHalf + i] : sums[i];
  sync_consumers();
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    sums[i] = (group == 0 ? sums[i] : sums[kHalf + i]) + room[(other * kHalf + i) * 128 + thread];
  }
  sync_consumers();
}

template <class Element, typename S, typename Out, bool BY_BLOCK>
__global__ void __cluster_dims__(S::kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap a_rest,
                 const __grid_constant__ CUtensorMap b_map, const __grid_constant__ CUtensorMap out_map,
                 const __grid_constant__ ScaledMM p, const __grid_constant__ Tiles tiles, const Meeting meeting) {
  using A = Atom<Element, kTileN>;
  using Sum = typename A::Register;
  using Sums = Sum[kRegisters];
  QCORE_SHARED_BYTES(raw);
  // From a lane: or the compiler would compute the address anew for every stage, before it can be waited for.
  const uint32_t start = __shfl_sync(0xffffffff, (shared_address(raw) + 1023) / 1024 * 1024, 0);
  auto* const stages = at_shared(start);
  uint8_t* const behind = stages + S::kStages * S::kStageBytes;
  auto* exchange = reinterpret_cast<Sum*>(behind);
  uint8_t* room = behind + S::kExchangeBytes;
  auto* full = reinterpret_cast<uint64_t*>(behind + S::kExchangeBytes + S::kStoreBytes);
  uint64_t* empty = full + S::kStages;
  auto* const scale_and_bias = reinterpret_cast<float2*>(behind + S::kExchangeBytes + S::kStoreBytes + S::kBarrierBytes);
  auto* const azp_adj = reinterpret_cast<int32_t*>(scale_and_bias + kGroups * kTileN);
  auto* const scales = reinterpret_cast<float*>(azp_adj + kGroups * kTileN);

  if (threadIdx.x == kConsumers) {
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    prefetch_map(&out_map);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&full[i], BY_BLOCK ? 1 + 32 : 1);  // the copy engine and the scales
      // Every warp that reads the stage; of all of a cluster, as a's rows come to all.
      barrier_init(&empty[i], 4 * (S::kAlongK ? 1 : kGroups) * S::kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    give_registers<56>();
    if (threadIdx.x == kConsumers) fetch<S>(tiles, p.m, &a_map, &a_rest, &b_map, stages, full, empty);
    if constexpr (BY_BLOCK) {
      if (threadIdx.x / 32 == kConsumers / 32 + 1) fetch_scales<S>(p, tiles, scales, full, empty);
    }
  } else {
    take_registers<224>();
    const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);  // the same in all lanes, as the compiler sees
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int rank = S::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
    const int group_row = S::kAlongK ? 0 : group * 64 * S::kParts;
    const int own_step = S::kAlongK ? group : 0;
    constexpr int kStride = S::kAlongK ? kGroups : 1;
    const ScaledEnd<Out> end(p);
    begin_turn();
    room += threadIdx.x / 32 * S::kBoxes * kBoxBytes;
    const ColumnEnds columns{scale_and_bias + group * kTileN, azp_adj + group * kTileN};
    const uint64_t a_first = matrix_descriptor(stages + group_row * kPiece);
    const uint64_t b_first = matrix_descriptor(stages + S::kABytes);
    uint32_t fetched = 0;  // steps of the places before
    int stage = 0;
    uint32_t round = 0;
    const auto advance = [&] {
      stage += kStride;
      if (stage >= S::kStages) {
        stage -= S::kStages;
        round ^= 1;
      }
    };
    const auto release = [&](int which) {
      __syncwarp();
      if (lane >= S::kCluster) return;
      if constexpr (S::kCluster > 1) {
        barrier_arrive_remote(&empty[which], lane);
      } else {
        barrier_arrive(&empty[which]);
      }
    };
    // d += a part's rows times the columns, for what is in the stage; by block, it is the start.
    const auto multiply = [&](Sums& d, int part) {
      const uint32_t at = stage * (S::kStageBytes / 16);
#pragma unroll
      for (int i = 0; i < kPiece / 32; ++i) {
        const uint64_t a = further(a_first, at + part * (64 * kPiece / 16) + 2 * i);
        wgmma<typename A::Type>(a, further(b_first, at + 2 * i), d, !BY_BLOCK || i > 0, std::make_index_sequence<kRegisters>{});
      }
      cute::warpgroup_commit_batch();
    };
    for (Walk<S::kCluster> walk(tiles); walk.more(); walk.next()) {
      const Place at = walk.at();
      const int first_step = at.first + own_step, last_step = at.last;
      const int tile_n = at.pair * S::kCluster + rank;
      const int row = at.m * S::kRows + group_row + warp * 16;
      // What the end needs is here by then.
      const auto my_column = end.column(min(tile_n * kTileN + static_cast<int>(threadIdx.x) % 128, p.n - 1));
      typename ScaledEnd<Out>::Row rows[S::kParts][2] = {};
      if constexpr (!BY_BLOCK) {
#pragma unroll
        for (int i = 0; i < S::kParts * 2; ++i) {
          rows[i / 2][i % 2] = end.row(min(row + i / 2 * 64 + i % 2 * 8 + lane / 4, p.m - 1));
        }
      }
      Sums total[S::kParts];
#pragma unroll
      for (int i = 0; i < S::kParts * kRegisters; ++i) total[i / kRegisters][i % kRegisters] = 0;

      stage = (fetched + own_step) % S::kStages;
      round = (fetched + own_step) / S::kStages % 2;
      fetched += at.last - at.first;

      if constexpr (BY_BLOCK) {
        for (int step = first_step; step < last_step; step += kStride, advance()) {
          barrier_wait(&full[stage], round);
          const float* const scale = scales + stage * S::kScales;
          float of_row[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) of_row[i] = scale[warp * 16 + i * 8 + lane / 4] * scale[S::kRows];
          Sums d;
          fence_registers(d);
          cute::warpgroup_arrive();
          multiply(d, 0);
          cute::warpgroup_wait<0>();
          fence_registers(d);
          release(stage);
#pragma unroll
          for (int i = 0; i < kRegisters; ++i) total[0][i] = fmaf(d[i], of_row[i % 4 / 2], total[0][i]);
        }
      } else {
        int before = -1;
        for (int step = first_step; step < last_step; step += kStride, advance()) {
          barrier_wait(&full[stage], round);
#pragma unroll
          for (int part = 0; part < S::kParts; ++part) fence_registers(total[part]);
          cute::warpgroup_arrive();
#pragma unroll
          for (int part = 0; part < S::kParts; ++part) multiply(total[part], part);
          cute::warpgroup_wait<S::kParts>();  // for those of the step before
          if (before >= 0) release(before);
          before = stage;
        }
        cute::warpgroup_wait<0>();
#pragma unroll
        for (int part = 0; part < S::kParts; ++part) fence_registers(total[part]);
        if (before >= 0) release(before);
      }

      if constexpr (S::kAlongK) add_groups(total[0], exchange, group);
      if (at.last < tiles.steps) {
        give<S::kFours>(meeting, total, meeting_place<S::kCluster, kGroups>(walk.cluster(), rank, group), group);
        continue;
      }
      for (int from = walk.first_giver(); from < walk.cluster(); ++from) {
        take<S::kFours>(meeting, total, meeting_place<S::kCluster, kGroups>(from, rank, group), group);
      }
      sync_group(group);  // all are done with the columns of the tile before
      columns.scale_and_bias[threadIdx.x % 128] = make_float2(my_column.scale, my_column.bias);
      if constexpr (std::is_same<Element, Int8>::value) columns.azp_adj[threadIdx.x % 128] = my_column.azp_adj;
      sync_group(group);
      if constexpr (S::kAlongK) {
        constexpr int kHalf = kTileN / 2;
        store<kHalf, S::kBoxes, Out, BY_BLOCK>(p, &out_map, total[0], rows[0], columns + group * kHalf, room, row,
                                               tile_n * kTileN + group * kHalf);
      } else {
#pragma unroll
        for (int part = 0; part < S::kParts; ++part) {
          store<kTileN, S::kBoxes, Out, BY_BLOCK>(p, &out_map, total[part], rows[part], columns, room, row + part * 64,
                                                  tile_n * kTileN);
        }
      }
    }
  }
  wait_until_stored();
  cluster_sync();  // the others' barriers and rows come from here until all are done
}

}  // namespace
}  // namespace qcore_cuda
