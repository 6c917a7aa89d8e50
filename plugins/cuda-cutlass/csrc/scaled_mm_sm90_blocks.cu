// SM90, FP8 with scales by block (a has one for each row and 128 of K, b one for each 128 x 128), many rows: tiles of
// 128 rows and columns.
//
// A block of threads has a processor for itself and takes tile after tile. A warp keeps the copy engine busy, another
// brings the scales that the engine can't, and two warpgroups multiply 64 rows each. The tensor cores add 128 products,
// and those sums are scaled and added in float32 while the next 128 are multiplied: so each warpgroup has two sets of
// them. Beside busy tensor cores such an addition takes several cycles, and 64 of them much of the time that there is.
// So the rest must be short: stages are taken two at a time, from which on all addresses are constants.
//
// Two blocks with tiles side by side form a cluster, in which each fetches half of a's rows, for both. What is finished
// leaves by the copy engine while the next tile is multiplied. Tiles can be shared along K as in
// scaled_mm_sm90_tiles.cu.

#include <type_traits>

#include "early_launch.cuh"
#include "handed_sums.cuh"
#include "scaled_mm.cuh"
#include "scaled_mm_sm90_sharing.h"
#include "scaled_mm_sm90_store.cuh"
#include "scaled_mm_sm90_walk.cuh"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kTile = 128;  // rows, columns, and the K of a stage
constexpr int kCluster = 2;
constexpr int kGroups = 2, kGroupRows = kTile / kGroups;  // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kThreads = kConsumers + 128;  // registers are given to whole warpgroups
constexpr int kStoreBytes = kConsumers / 32 * kBoxBytes;
constexpr int kSharedBytes = 227 * 1024;

// A stage: a and b, and from kFull on its barriers and scales.
constexpr int kMatrixBytes = kTile * kTile, kScaleBytes = kTile * 4;
constexpr int kFull = 2 * kMatrixBytes, kEmpty = kFull + 8, kScaleOfB = kFull + 16, kScalesOfA = kFull + 128;
constexpr int kStageBytes = 2 * kMatrixBytes + 1024;
constexpr int kStages = 6, kRingBytes = kStages * kStageBytes;
static_assert(kStages % 2 == 0 && kScalesOfA + kScaleBytes <= kStageBytes);
static_assert(1024 + kRingBytes + kStoreBytes + kGroups * kTile * 8 <= kSharedBytes);

using Atom = gmma::MMA_64x128x32_F32E4M3E4M3_SS_TN<gmma::ScaleIn::One, gmma::ScaleIn::One>;
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

__device__ __forceinline__ uint64_t* barrier_at(uint32_t address) {
  return static_cast<uint64_t*>(__cvta_shared_to_generic(address));
}
__device__ __forceinline__ float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

// a and b and, if their layout lets the engine, a's scales. Of an odd number of steps the last two stages are half
// empty.
template <typename Tour>
__device__ __forceinline__ void fetch(const Tiles& tiles, const CUtensorMap* a_map, const CUtensorMap* b_map,
                                      const CUtensorMap* scale_map, bool engine_brings_scales, uint32_t ring) {
  constexpr uint16_t kAll = (1 << kCluster) - 1;
  constexpr int kPart = kTile / kCluster;
  const int rank = cluster_rank();
  const uint32_t bytes = 2 * kMatrixBytes + (engine_brings_scales ? kScaleBytes : 0);
  auto* const stages = static_cast<uint8_t*>(__cvta_shared_to_generic(ring));
  const auto load_b = [&](uint8_t* stage, int step, int pair) {
    auto* const full = reinterpret_cast<uint64_t*>(stage + kFull);
    barrier_expect(full, bytes);  // of columns beyond the end zeros come
    load_box(stage + kMatrixBytes, b_map, full, step * kTile, (pair * kCluster + rank) * kTile, kEvictNormal);
  };
  Tour tour(tiles);
  int early = 0;  // stages whose part of b comes before this kernel's turn
  if (tour.more()) {
    const Place at = tour.at();
    for (early = 0; early < min(kStages, at.last - at.first); ++early) {
      load_b(stages + early * kStageBytes, at.first + early, at.pair);
    }
  }
  begin_turn();
  for (TwoStages two; tour.more(); tour.next()) {
    const Place at = tour.at();
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
        if (early-- <= 0) load_b(stage, step + i, at.pair);
        load_box_for(kAll, stage + rank * kPart * kTile, a_map, full, (step + i) * kTile, at.m * kTile + rank * kPart);
        if (engine_brings_scales) load_box(stage + kScalesOfA, scale_map, full, at.m * kTile, step + i, kEvictNormal);
      }
    }
  }
}

// b's scales, asked for two stages before they are due, and a's if the copy engine doesn't bring them: those copies
// themselves arrive at the barrier, once for each lane.
template <typename Tour>
__device__ __forceinline__ void fetch_scales(const ScaledMM& p, const Tiles& tiles, bool engine_brings_scales,
                                             uint32_t ring) {
  const int lane = threadIdx.x % 32, rank = cluster_rank();
  begin_turn();
  TwoStages two;
  for (Tour tour(tiles); tour.more(); tour.next()) {
    const Place at = tour.at();
    const float* const b = p.b_scale + min(at.pair * kCluster + rank, (p.n - 1) / kTile) * p.b_scale_n;
    int row[kTile / 32];
#pragma unroll
    for (int i = 0; i < kTile / 32; ++i) {
      row[i] = min(at.m * kTile + i * 32 + lane, p.m - 1) * static_cast<int>(p.a_scale_m);
    }
    const auto of_b_at = [&](int step) { return __ldg(b + min(step, at.last - 1) * p.b_scale_k); };
    float of_b[2] = {of_b_at(at.first), of_b_at(at.first + 1)};
#pragma unroll 1  // a warp here has few registers
    for (int step = at.first; step < at.last; step += 2, two = two.next()) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t stage = ring + two.at + i * kStageBytes;
        uint64_t* const full = barrier_at(stage + kFull);
        const float next = of_b_at(step + 2 + i);
        barrier_wait(barrier_at(stage + kEmpty), two.round ^ 1);
        if (!engine_brings_scales) {
          auto* const to = static_cast<float*>(__cvta_shared_to_generic(stage + kScalesOfA));
          const float* const a = p.a_scale + min(step + i, at.last - 1) * p.a_scale_k;
#pragma unroll
          for (int j = 0; j < kTile / 32; ++j) copy_float(to + j * 32 + lane, a + row[j]);
          barrier_arrive_after_copies(full);
        }
        if (lane == 0) {
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(stage + kScaleOfB), "f"(of_b[i]) : "memory");
          barrier_arrive(full);
        }
        of_b[i] = next;
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
__device__ __forceinline__ void begin(Stage<WHICH>, const Operands& operands, const TwoStages& two, Sums& d,
                                      float (&scale)[2]) {
  constexpr int kAt = WHICH * kStageBytes;
  barrier_wait(barrier_at(operands.ring + two.at + kAt + kFull), two.round);
#pragma unroll
  for (int i = 0; i < 2; ++i) scale[i] = load_shared(operands.scales + two.at + kAt + i * 8 * 4);
  const float of_b = load_shared(operands.ring + two.at + kAt + kScaleOfB);
  fence_registers(d);
  cute::warpgroup_arrive();
  const uint32_t a = operands.a + two.at / 16, b = operands.b + two.at / 16;
#pragma unroll
  for (int i = 0; i < kTile / 32; ++i) {
    constexpr int kUnits = kAt / 16;
    wgmma<Atom>(kDescriptorHigh | (a + (kUnits + 2 * i)), kDescriptorHigh | (b + (kUnits + 2 * i)), d, i > 0,
                std::make_index_sequence<kRegisters>{});
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

// One tile's steps; returns where the next ones begin.
__device__ __forceinline__ TwoStages multiply(const Operands& operands, TwoStages two, int steps, Sums& total) {
  constexpr Stage<0> first;
  constexpr Stage<1> second;
  Sums d[2];
  float scale[2][2];
  const auto add = [&](auto which, const TwoStages& of) {
    fence_registers(d[which]);
    release(which, operands, of);
    add_scaled(total, d[which], scale[which]);
  };
  begin(first, operands, two, d[0], scale[0]);
  int begun = 1;
  for (; begun + 1 < steps; begun += 2) {
    begin(second, operands, two, d[1], scale[1]);
    cute::warpgroup_wait<1>();
    add(first, two);
    const TwoStages next = two.next();
    begin(first, operands, next, d[0], scale[0]);
    cute::warpgroup_wait<1>();
    add(second, two);
    two = next;
  }
  if (begun < steps) {
    begin(second, operands, two, d[1], scale[1]);
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
    blocks_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                  const __grid_constant__ CUtensorMap scale_map, const __grid_constant__ CUtensorMap out_map,
                  const __grid_constant__ ScaledMM p, const __grid_constant__ Tiles tiles, const Meeting meeting,
                  const bool engine_brings_scales) {
  using Tour = std::conditional_t<SHARED, Walk<kCluster>, WholeTiles<kCluster>>;
  extern __shared__ uint8_t raw[];
  // From a lane, as the descriptors: or the compiler would compute them anew for every stage.
  const uint32_t ring = __shfl_sync(0xffffffff, (shared_address(raw) + 1023) / 1024 * 1024, 0);
  auto* const stages = static_cast<uint8_t*>(__cvta_shared_to_generic(ring));

  if (threadIdx.x == kConsumers) {
    for (const CUtensorMap* map : {&a_map, &b_map, &out_map}) prefetch_map(map);
    if (engine_brings_scales) prefetch_map(&scale_map);
    for (uint32_t stage = ring; stage < ring + kRingBytes; stage += kStageBytes) {
      barrier_init(barrier_at(stage + kFull), engine_brings_scales ? 2 : 2 + 32);  // engine, b's scale, a's
      barrier_init(barrier_at(stage + kEmpty), kConsumers / 32 * kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    const int warp = (threadIdx.x - kConsumers) / 32;
    if (warp == 0 && elect_one()) fetch<Tour>(tiles, &a_map, &b_map, &scale_map, engine_brings_scales, ring);
    if (warp == 1) fetch_scales<Tour>(p, tiles, engine_brings_scales, ring);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);  // the same in all lanes, as the compiler sees
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, rank = cluster_rank();
    const auto descriptor = [&](const uint8_t* matrix) {
      return __shfl_sync(0xffffffff, static_cast<uint32_t>(matrix_descriptor(matrix)), 0);
    };
    const Operands operands{ring, ring + kScalesOfA + (group * kGroupRows + warp * 16 + lane / 4) * 4,
                            address_in_block(ring + kEmpty, lane % kCluster),
                            descriptor(stages + group * kGroupRows * kTile), descriptor(stages + kMatrixBytes)};
    uint8_t* const room = stages + kRingBytes + threadIdx.x / 32 * kBoxBytes;
    auto* const columns = reinterpret_cast<float2*>(stages + kRingBytes + kStoreBytes) + group * kTile;
    const ScaledEnd<Out> end(p);
    begin_turn();
    TwoStages two;
    for (Tour tour(tiles); tour.more(); tour.next()) {
      const Place at = tour.at();
      const int column = (at.pair * kCluster + rank) * kTile;
      Sums total[1] = {};
      two = multiply(operands, two, at.last - at.first, total[0]);
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
        columns[threadIdx.x % 128] = make_float2(mine.scale, mine.bias);
        sync_group(group);
      }
      constexpr float kScaled[2] = {};
      store<kTile, 1, Out, true>(p, &out_map, total[0], kScaled, columns, room,
                                 at.m * kTile + group * kGroupRows + warp * 16, column);
    }
  }
  wait_until_stored();
  cluster_sync();  // the others' barriers and rows come from here until all are done
}

template <bool SHARED, typename Out>
void launch(const ScaledMM& p) {
  const char* op = "cutlass_scaled_mm";
  const auto kernel = blocks_kernel<SHARED, Out>;
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kSharedBytes, p.device, allowed);
  const CUtensorMap a_map = byte_matrix_map(op, p.a, p.m, p.k, p.a_stride, kTile / kCluster);
  const CUtensorMap b_map = byte_matrix_map(op, p.b, p.n, p.k, p.b_stride, kTile);
  const CUtensorMap out_map = byte_matrix_map(op, p.out, p.m, int64_t{p.n} * 2, p.out_stride * 2, 16);
  const Division division(p, kTile, kTile * kCluster, p.sm_count / kCluster, SHARED, kCluster * kGroups,
                          kFours * 4 * 128);
  const bool engine_brings_scales = p.a_scale_m == 1 && p.a_scale_k >= p.m && p.a_scale_k % 4 == 0 &&
                                    reinterpret_cast<uintptr_t>(p.a_scale) % 16 == 0;
  const CUtensorMap scale_map =
      engine_brings_scales ? float_matrix_map(op, p.a_scale, division.tiles.steps, p.m, p.a_scale_k, 1, kTile) : a_map;
  const LaunchShape shape{dim3(static_cast<unsigned>(division.clusters * kCluster)), kThreads, kSharedBytes, p.stream,
                          p.early_launch};
  launch_kernel(op, shape, kernel, a_map, b_map, scale_map, out_map, p, division.tiles, division.meeting,
                engine_brings_scales);
}

}  // namespace

void scaled_mm_sm90_blocks(const ScaledMM& p, bool shared) {
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    shared ? launch<true, Out>(p) : launch<false, Out>(p);
  });
}

}  // namespace qcore_cuda
