// SM90, FP8 with scales by block (a has one for each row and 128 of K, b one for each 128 x 128), many rows: tiles of
// 128 rows and columns.
//
// A block of threads has a processor for itself and takes tile after tile. A thread keeps the copy engine busy, and two
// warpgroups multiply 64 rows each. The tensor cores add 128 products, and those sums are scaled and added in float32
// while the next 128 are multiplied: so each warpgroup has two sets of them. Beside busy tensor cores such an addition
// takes several cycles, and 64 of them much of the time that there is. So the rest must be short: stages are taken two at
// a time, from which on all addresses are constants.
//
// The engine brings scales, too: a's with each stage, of b those of a whole tile at once. Scales that lie otherwise are
// copied before.
//
// Two blocks with tiles side by side form a cluster, in which each fetches half of a's rows, for both. What is finished
// leaves by the copy engine while the next tile is multiplied. Tiles can be shared along K as in
// scaled_mm_sm90_tiles.cuh.
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

constexpr int kTile = 128;  // rows, columns, and the K of a stage
constexpr int kCluster = 2;
constexpr int kGroups = 2, kGroupRows = kTile / kGroups;  // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kThreads = kConsumers + 128;  // registers are given to whole warpgroups
constexpr int kStoreBytes = kConsumers / 32 * kBoxBytes;
constexpr int kSharedBytes = 227 * 1024;

// A stage: a and b, and from kFull on its barriers and a's scales.
constexpr int kMatrixBytes = kTile * kTile, kScaleBytes = kTile * 4;
constexpr int kFull = 2 * kMatrixBytes, kEmpty = kFull + 8, kScales = kFull + 128;
constexpr int kStageBytes = 2 * kMatrixBytes + 1024;
constexpr int kStages = 6, kRingBytes = kStages * kStageBytes;
static_assert(kStages % 2 == 0 && kScales + kScaleBytes <= kStageBytes);

// A row: b's scales for a tile, in boxes from a multiple of four floats on, as the engine wants. There are two, and a full
// and an empty barrier for each.
constexpr int kBoxFloats = 64, kRows = 2;
constexpr int kRowBytes = (kBlocksMostK / kTile + 3 + kBoxFloats - 1) / kBoxFloats * kBoxFloats * 4;
constexpr int kColumnsAt = kRingBytes + kStoreBytes, kRowsAt = kColumnsAt + kGroups * kTile * 8;
constexpr int kRowFull = kRowsAt + kRows * kRowBytes, kRowEmpty = kRowFull + kRows * 8;
static_assert(1024 + kRowEmpty + kRows * 8 <= kSharedBytes);

constexpr int kRegisters = kTile / 2;  // of a thread, for 64 rows
constexpr int kFours = kRegisters / 4;
using Sums = float[kRegisters];

// The first or second of two stages.
template <int WHICH>
using Stage = std::integral_constant<int, WHICH>;

// Where in the ring of stages somebody is, two at a time.
struct TwoStages {
  uint32_t at = 0, round = 0;

  __device__ __forceinline__ TwoStages next() const {
    const uint32_t further = at + 2 * kStageBytes;
    return further == kRingBytes ? TwoStages{0, round ^ 1} : TwoStages{further, round};
  }
};

// Which row somebody is at.
struct RowAt {
  uint32_t row = 0, round = 0;

  __device__ __forceinline__ RowAt next() const { return row + 1 == kRows ? RowAt{0, round ^ 1} : RowAt{row + 1, round}; }
};

__device__ __forceinline__ uint64_t* barrier_at(uint32_t address) {
  return reinterpret_cast<uint64_t*>(at_shared(address));
}

// All that a block multiplies. Of an odd number of steps the last two stages are half empty.
template <typename Tour>
__device__ __forceinline__ void fetch(const Tiles& tiles, int m, const CUtensorMap* a_map, const CUtensorMap* a_rest,
                                      const CUtensorMap* b_map, const CUtensorMap* a_scale_map,
                                      const CUtensorMap* b_scale_map, uint32_t ring) {
  constexpr uint16_t kAll = (1 << kCluster) - 1;
  constexpr int kPart = kTile / kCluster;
  const int rank = cluster_rank();
  auto* const stages = at_shared(ring);
  const auto load_b = [&](uint8_t* stage, int step, const Place& at) {
    auto* const full = reinterpret_cast<uint64_t*>(stage + kFull);
    // Of columns beyond the end zeros come.
    barrier_expect(full, kMatrixBytes + min(kTile, m - at.m * kTile) * kTile + kScaleBytes);
    load_box(stage + kMatrixBytes, b_map, full, step * kTile, (at.pair * kCluster + rank) * kTile, kEvictNormal);
  };
  const auto load_row = [&](const RowAt& to, const Place& at) {
    auto* const full = barrier_at(ring + kRowFull + to.row * 8);
    uint8_t* box = stages + kRowsAt + to.row * kRowBytes;
    const int first = at.first / 4 * 4, boxes = (at.last - first + kBoxFloats - 1) / kBoxFloats;
    barrier_expect(full, boxes * kBoxFloats * 4);
    for (int i = 0; i < boxes; ++i, box += kBoxFloats * 4) {
      load_box(box, b_scale_map, full, first + i * kBoxFloats, at.pair * kCluster + rank, kEvictNormal);
    }
  };
  Tour tour(tiles);
  int early = 0;  // stages whose part of b comes before this kernel's turn
  if (tour.more()) {
    const Place at = tour.at();
    for (early = 0; early < min(kStages, at.last - at.first); ++early) {
      load_b(stages + early * kStageBytes, at.first + early, at);
    }
  }
  begin_turn();
  RowAt row;
  for (TwoStages two; tour.more(); tour.next(), row = row.next()) {
    const Place at = tour.at();
    barrier_wait(barrier_at(ring + kRowEmpty + row.row * 8), row.round ^ 1);
    load_row(row, at);
    const int first_row = at.m * kTile + rank * kPart;
    const CUtensorMap* const map = first_row + kPart <= m ? a_map : a_rest;
    for (int step = at.first; step < at.last; step += 2, two = two.next()) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint8_t* const stage = stages + two.at + i * kStageBytes;
        auto* const full = reinterpret_cast<uint64_t*>(stage + kFull);
        barrier_wait(reinterpret_cast<uint64_t*>(stage + kEmpty), two.round ^ 1);
        if (step + i >= at.last) {
          barrier_arrive(full);
          break;
        }
        if (early-- <= 0) load_b(stage, step + i, at);
        if (first_row < m) load_box_for(kAll, stage + rank * kPart * kTile, map, full, (step + i) * kTile, first_row);
        load_box(stage + kScales, a_scale_map, full, at.m * kTile, step + i, kEvictNormal);
      }
    }
  }
}

// What a warpgroup multiplies: 64 rows and the columns of two stages.
struct Operands {
  uint32_t ring, scales;  // addresses: of the ring, and of the scale of a thread's first row in it
  uint32_t empty;         // of the barrier in block `lane` of the cluster
  uint32_t a, b;          // low halves of matrix descriptors
};

// Begins the products of a stage, and says how they are scaled: those of rows g and g + 8.
template <int WHICH>
__device__ __forceinline__ void begin(Stage<WHICH>, const Operands& operands, const TwoStages& two, uint32_t scale_of_b,
                                      Sums& d, float (&scale)[2]) {
  constexpr int kAt = WHICH * kStageBytes;
  barrier_wait(barrier_at(operands.ring + two.at + kAt + kFull), two.round);
#pragma unroll
  for (int i = 0; i < 2; ++i) scale[i] = load_shared(operands.scales + two.at + kAt + i * 8 * 4);
  const float of_b = load_shared(scale_of_b);
  fence_registers(d);
  cute::warpgroup_arrive();
  const uint32_t a = operands.a + two.at / 16, b = operands.b + two.at / 16;
#pragma unroll
  for (int i = 0; i < kTile / 32; ++i) {
    constexpr int kUnits = kAt / 16;
    wgmma<Atom<E4m3, kTile>::Type>(kDescriptorHigh | (a + (kUnits + 2 * i)), kDescriptorHigh | (b + (kUnits + 2 * i)), d,
                                   i > 0, std::make_index_sequence<kRegisters>{});
  }
  cute::warpgroup_commit_batch();
#pragma unroll
  for (int i = 0; i < 2; ++i) scale[i] *= of_b;
}

// By a warp: it needs the stage no more. All of a cluster are told, as a's rows come to all.
template <int WHICH>
__device__ __forceinline__ void release(Stage<WHICH>, const Operands& operands, const TwoStages& two) {
  __syncwarp();
  if (threadIdx.x % 32 < kCluster) barrier_arrive_there(operands.empty + two.at + WHICH * kStageBytes);
}

__device__ __forceinline__ void add_scaled(Sums& total, const Sums& d, const float (&scale)[2]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) total[i] = fmaf(d[i], scale[i % 4 / 2], total[i]);
}

// A tile's steps; returns where the next ones begin. `scale_of_b`: the address of the first step's.
__device__ __forceinline__ TwoStages multiply(const Operands& operands, TwoStages two, int steps, uint32_t scale_of_b,
                                              Sums& total) {
  constexpr Stage<0> first;
  constexpr Stage<1> second;
  Sums d[2];
  float scale[2][2];
  const auto add = [&](auto which, const TwoStages& of) {
    fence_registers(d[which]);
    release(which, operands, of);
    add_scaled(total, d[which], scale[which]);
  };
  begin(first, operands, two, scale_of_b, d[0], scale[0]);
  int begun = 1;
  for (; begun + 1 < steps; begun += 2) {
    begin(second, operands, two, scale_of_b + 4, d[1], scale[1]);
    cute::warpgroup_wait<1>();
    add(first, two);
    const TwoStages next = two.next();
    scale_of_b += 8;
    begin(first, operands, next, scale_of_b, d[0], scale[0]);
    cute::warpgroup_wait<1>();
    add(second, two);
    two = next;
  }
  if (begun < steps) {
    begin(second, operands, two, scale_of_b + 4, d[1], scale[1]);
    cute::warpgroup_wait<1>();
    add(first, two);
    cute::warpgroup_wait<0>();
    add(second, two);
  } else {
    cute::warpgroup_wait<0>();
    add(first, two);
    barrier_wait(barrier_at(operands.ring + two.at + kStageBytes + kFull), two.round);
    release(second, operands, two);
  }
  return two.next();
}

template <bool SHARED, typename Out>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    blocks_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap a_rest,
                  const __grid_constant__ CUtensorMap b_map, const __grid_constant__ CUtensorMap a_scale_map,
                  const __grid_constant__ CUtensorMap b_scale_map, const __grid_constant__ CUtensorMap out_map,
                  const __grid_constant__ ScaledMM p, const __grid_constant__ Tiles tiles, const Meeting meeting) {
  using Tour = std::conditional_t<SHARED, Walk<kCluster>, WholeTiles<kCluster>>;
  QCORE_SHARED_BYTES(raw);
  // From a lane, as the descriptors: or the compiler would compute them anew for every stage.
  const uint32_t ring = __shfl_sync(0xffffffff, (shared_address(raw) + 1023) / 1024 * 1024, 0);
  auto* const stages = at_shared(ring);

  if (threadIdx.x == kConsumers) {
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    prefetch_map(&out_map);
    for (uint32_t stage = ring; stage < ring + kRingBytes; stage += kStageBytes) {
      barrier_init(barrier_at(stage + kFull), 1);
      barrier_init(barrier_at(stage + kEmpty), kConsumers / 32 * kCluster);
    }
    for (int i = 0; i < kRows; ++i) {
      barrier_init(barrier_at(ring + kRowFull + i * 8), 1);
      barrier_init(barrier_at(ring + kRowEmpty + i * 8), kConsumers / 32);
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    give_registers<56>();
    if (threadIdx.x < kConsumers + 32 && elect_one()) {
      fetch<Tour>(tiles, p.m, &a_map, &a_rest, &b_map, &a_scale_map, &b_scale_map, ring);
    }
  } else {
    take_registers<224>();
    const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);  // the same in all lanes, as the compiler sees
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, rank = cluster_rank();
    const auto descriptor = [&](const uint8_t* matrix) {
      return __shfl_sync(0xffffffff, static_cast<uint32_t>(matrix_descriptor(matrix)), 0);
    };
    const Operands operands{ring, ring + kScales + (group * kGroupRows + warp * 16 + lane / 4) * 4,
                            address_in_block(ring + kEmpty, lane % kCluster),
                            descriptor(stages + group * kGroupRows * kTile), descriptor(stages + kMatrixBytes)};
    uint8_t* const room = stages + kRingBytes + threadIdx.x / 32 * kBoxBytes;
    const ColumnEnds columns{reinterpret_cast<float2*>(stages + kColumnsAt) + group * kTile, nullptr};
    const ScaledEnd<Out> end(p);
    begin_turn();
    TwoStages two;
    RowAt row;
    for (Tour tour(tiles); tour.more(); tour.next(), row = row.next()) {
      const Place at = tour.at();
      const int column = (at.pair * kCluster + rank) * kTile;
      Sums total[1] = {};
      barrier_wait(barrier_at(ring + kRowFull + row.row * 8), row.round);
      two = multiply(operands, two, at.last - at.first, ring + kRowsAt + row.row * kRowBytes + at.first % 4 * 4, total[0]);
      __syncwarp();
      if (lane == 0) barrier_arrive(barrier_at(ring + kRowEmpty + row.row * 8));
      if constexpr (SHARED) {
        if (at.last < tiles.steps) {
          give<kFours>(meeting, total, meeting_place<kCluster, kGroups>(tour.cluster(), rank, group), group);
          continue;
        }
        for (int from = tour.first_giver(); from < tour.cluster(); ++from) {
          take<kFours>(meeting, total, meeting_place<kCluster, kGroups>(from, rank, group), group);
        }
      }
      if (p.bias) {
        const auto mine = end.column(min(column + static_cast<int>(threadIdx.x) % 128, p.n - 1));
        sync_group(group);  // all are done with the columns of the tile before
        columns.scale_and_bias[threadIdx.x % 128] = make_float2(mine.scale, mine.bias);
        sync_group(group);
      }
      constexpr typename ScaledEnd<Out>::Row kScaled[2] = {};
      store<kTile, 1, Out, true>(p, &out_map, total[0], kScaled, columns, room,
                                 at.m * kTile + group * kGroupRows + warp * 16, column);
    }
  }
  wait_until_stored();
  cluster_sync();  // the others' barriers and rows come from here until all are done
}

}  // namespace
}  // namespace qcore_cuda
