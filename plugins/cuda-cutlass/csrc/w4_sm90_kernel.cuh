// SM90: many rows times packed weights of 4 or 8 bits, integers or floats. Weights become 16-bit floats in registers
// and are the left operand of wgmma, so that they are read from memory as they are packed; activations
// are the right operand, from shared memory. The product is thus out^T = W^T x^T.
//
// A block of threads takes tiles of 128 or 256 columns of the weight and 64, 128 or 256 rows of activations. One
// thread keeps the copy engine busy with stages of one or two pieces of 64 inputs (activations, packed weights,
// scales, zero points); two warpgroups have half of the columns each, one or two operands of 64. While the tensor
// cores multiply a piece or half of one, the weights of the next are made: (code - zero) is exact in 16 bits, times
// the scale it is rounded once, as if the whole weight had been dequantized to that type. Tiles of 64 rows leave room
// for two blocks on a processor: while one makes weights, the other multiplies.
//
// A thread's columns are neighbours, rows g and g + 8 of each operand: any order of columns will do that the sums are
// stored in, and so their words, scales and zero points are one load each.
//
// Where there are tiles for all processors, two blocks side by side form a cluster, in which each fetches
// half of the activations, for both. Where the last tiles would leave processors idle, some clusters have no tile of
// their own: they help others with the end of K, and leave their sums in memory. Where there are few tiles, the blocks of
// a cluster have a part of K each and add up through shared memory. All sums have one order. w4_sm90_plan.h chooses.
#pragma once

#include "early_launch.cuh"
#include "w4_sm90_sums.cuh"

namespace qcore_cuda {
namespace {

using namespace sm90;

// What a thread needs of a group: for its columns, which are neighbours; two for each operand.
template <typename T, class KIND, int OPERANDS>
struct Side {
  static constexpr int BITS = KIND::kBits, kColumns = 2 * OPERANDS;

  typename Codes<KIND, T>::Zero zero[KIND::kScaled ? 2 : 1][kColumns];  // of each 16 inputs, if these have scales
  typename PairOf<T>::Type scale[kColumns];

  __device__ __forceinline__ explicit Side(int constant) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) zero[0][c] = Codes<KIND, T>::zero(static_cast<uint32_t>(constant));
  }
  // `scales`: of the first column; `zeros`: its word.
  __device__ __forceinline__ void load(const Problem& p, uint32_t scales, uint32_t zeros, int column) {
    uint32_t bits[OPERANDS];
    shared_words(bits, scales);
    if constexpr (KIND::kScaled) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        zero[0][c] = Codes<KIND, T>::zero_of(bits[c / 2], 2 * (c % 2));
        zero[1][c] = Codes<KIND, T>::zero_of(bits[c / 2], 2 * (c % 2) + 1);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) scale[c] = as_pair<T>(__byte_perm(bits[c / 2], 0, c % 2 ? 0x3232 : 0x1010));
      if (!KIND::kFloat && p.has_zeros) {
        uint32_t word[1];
        shared_words(word, zeros);
        word[0] = (word[0] + p.zero_ones) >> (column * BITS % 32);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          zero[0][c] = Codes<KIND, T>::zero(word[0] >> (c * BITS) & ((1u << BITS) - 1));
        }
      }
    }
  }
};

template <int BITS, int OPERANDS>
struct Side<__nv_bfloat16, Subnormal<BITS>, OPERANDS> {
  using C = Codes<Subnormal<BITS>, __nv_bfloat16>;

  typename C::Scale scale[2 * OPERANDS];

  __device__ __forceinline__ explicit Side(int) {}
  __device__ __forceinline__ void load(const Problem&, uint32_t scales, uint32_t, int) {
    uint32_t bits[OPERANDS];
    shared_words(bits, scales);
#pragma unroll
    for (int c = 0; c < 2 * OPERANDS; ++c) {
      const uint32_t twice = __byte_perm(bits[c / 2], 0, c % 2 ? 0x3232 : 0x1010);
      scale[c] = C::scale(as_pair<__nv_bfloat16>(twice));
    }
  }
};

template <int OPERANDS>
struct Side<__nv_bfloat16, Lanes, OPERANDS> : Side<__nv_bfloat16, Subnormal<4>, OPERANDS> {
  using Side<__nv_bfloat16, Subnormal<4>, OPERANDS>::Side;
};

constexpr int kLaneBytes = 512;  // of half of a piece of 32 columns in words of lanes

template <int OPERANDS>
__device__ __forceinline__ void make_weights_of_lanes(uint32_t (&a)[2][OPERANDS][4], const uint32_t (&raw)[2 * OPERANDS],
                                                      const Side<__nv_bfloat16, Lanes, OPERANDS>& side) {
  using C = Codes<Lanes, __nv_bfloat16>;
#pragma unroll
  for (int c = 0; c < 2 * OPERANDS; ++c) {
    a[0][c / 2][c % 2] = C::weights<0>(raw[c], side.scale[c]);
    a[0][c / 2][2 + c % 2] = C::weights<1>(raw[c], side.scale[c]);
    a[1][c / 2][c % 2] = C::weights<2>(raw[c], side.scale[c]);
    a[1][c / 2][2 + c % 2] = C::weights<3>(raw[c], side.scale[c]);
  }
}

// The words that hold a thread's weights of half of a piece: of its columns side by side, for each 16 inputs those of
// inputs 2q and 2q + 1, then of those 8 further on.
template <class S>
__device__ __forceinline__ void read_words(uint32_t (&raw)[4][2 * S::kOperands], uint32_t words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) shared_words(raw[i], words + i * (S::kWordRows / 8) * S::kColumns * 4);
}

// As the left operands' registers, for the first 16 inputs and for the others.
template <typename T, class KIND, int OPERANDS>
__device__ __forceinline__ void make_weights(uint32_t (&a)[2][OPERANDS][4], const uint32_t (&raw)[4][2 * OPERANDS],
                                             int q, const Side<T, KIND, OPERANDS>& side) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int c = 0; c < 2 * OPERANDS; ++c) {
      uint32_t& pair = a[i / 2][c / 2][i % 2 * 2 + c % 2];
      if constexpr (kIsSubnormal<KIND>) {
        const int bit = KIND::kBits == 8 ? 16 * (q % 2) : 4 * q;
        pair = Codes<KIND, T>::template weights<0>(raw[i][c] >> bit, side.scale[c]);
      } else {
        pair = pair_at<KIND, T>(raw[i][c], q, side.zero[KIND::kScaled ? i / 2 : 0][c]);
        if constexpr (!KIND::kScaled) pair = as_bits(__hmul2(as_pair<T>(pair), side.scale[c]));
      }
    }
  }
}

__device__ __forceinline__ void sync_consumers() { sync_threads(3, kConsumers); }

// By one thread.
template <typename S, bool PARTS, bool LANES>
__device__ __forceinline__ void fetch(const Problem& p, const CUtensorMap* x_map, const CUtensorMap* x_rest,
                                      const CUtensorMap* w_map, const CUtensorMap* scale_map, const CUtensorMap* zero_map,
                                      uint8_t* stages, uint8_t* sides, uint64_t* full, uint64_t* empty, int cluster,
                                      int clusters, int rank) {
  constexpr int kFetched = PARTS ? S::kRows : S::kRows / 2;
  const int slots = S::slots(p.group_halves);
  const uint32_t bytes = S::kPieces * S::kWBytes + slots * (S::kScaleBytes + (p.has_zeros ? S::kZeroWords * 4 : 0));
  GroupCounter of(p.group_halves);
  const auto load_weights = [&](const Place& at, int step, int stage) {
    barrier_expect(&full[stage], bytes + S::kPieces * 128 * min(S::kRows, p.m - at.m * S::kRows));
    uint8_t* side = sides + stage * S::kSideBytes;
    const int column = at.n * S::kColumns;
    uint8_t* const words = stages + stage * S::kStageBytes + S::kPieces * S::kXBytes;
    if constexpr (LANES) load_boxes(words, w_map, &full[stage], column / 32, step * S::kPieces, kEvictNormal);
    else load_box(words, w_map, &full[stage], column, step * S::kPieces * S::kWordRows, kEvictNormal);
    for (int slot = 0; slot < slots; ++slot, side += S::kSlotBytes) {
      load_box(side, scale_map, &full[stage], column, of.group, kEvictNormal);
      if (p.has_zeros) {
        load_box(side + S::kScaleBytes, zero_map, &full[stage], at.n * S::kZeroWords, of.group, kEvictNormal);
      }
      of.next(S::kHalves / slots);
    }
  };
  Walk<S, PARTS> walk(p, cluster, clusters);
  int early = 0;  // stages whose weights come before this kernel's turn
  if (walk.more()) {
    const Place at = walk.at(p, rank);
    of.begin(S::kHalves * at.first);
    for (early = 0; early < min(S::kStages, at.last - at.first); ++early) load_weights(at, at.first + early, early);
  }
  begin_turn();
  int stage = 0;
  uint32_t round = 1;  // the first time the stages are free
  for (bool again = false; walk.more(); walk.next(), again = true) {
    const Place at = walk.at(p, rank);
    if (again) of.begin(S::kHalves * at.first);
    const int part = PARTS ? 0 : rank * kFetched, row = at.m * S::kRows + part;
    const CUtensorMap* const map = row + kFetched <= p.m ? x_map : x_rest;
    for (int step = at.first; step < at.last; ++step) {
      barrier_wait(&empty[stage], round);
      if (early-- <= 0) load_weights(at, step, stage);
      uint8_t* const to = stages + stage * S::kStageBytes;
      if (row < p.m) {
#pragma unroll
        for (int i = 0; i < S::kPieces; ++i) {
          const int byte = (step * S::kPieces + i) * 128;
          if constexpr (PARTS) load_box(to + i * S::kXBytes, map, &full[stage], byte, row, kEvictLast);
          else load_box_for(3, to + i * S::kXBytes + part * 128, map, &full[stage], byte, row);
        }
      }
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    }
  }
}

template <typename T, class KIND, class S, bool PARTS>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    w4_sm90_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap x_rest,
                   const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap scale_map,
                   const __grid_constant__ CUtensorMap zero_map, const __grid_constant__ Problem p) {
  constexpr int BITS = KIND::kBits, R = S::kRegisters, kOperands = S::kOperands;
  using Atom = typename AtomOf<T, S::kRows>::Type;

  QCORE_SHARED_BYTES(raw);
  uint8_t* const stages = raw + (-shared_address(raw) & 1023);
  uint8_t* const sides = stages + S::kStages * S::kStageBytes;
  uint8_t* const behind = sides + S::kStages * S::kSideBytes;
  auto* full = reinterpret_cast<uint64_t*>(behind);
  uint64_t* const empty = full + S::kStages;
  const int blocks = PARTS ? p.parts : 2;  // of a cluster
  const int cluster = blockIdx.x / blocks, clusters = gridDim.x / blocks;
  const int rank = static_cast<int>(cluster_rank());

  if (threadIdx.x == kConsumers) {
    prefetch_map(&x_map);
    prefetch_map(&w_map);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 4 * kGroups * (PARTS ? 1 : 2));  // each warp that reads what this block fetched
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    if constexpr (S::kBlocks == 1) give_registers<56>();
    if (threadIdx.x < kConsumers + 32 && elect_one()) {
      fetch<S, PARTS, kInLanes<KIND>>(p, &x_map, &x_rest, &w_map, &scale_map, &zero_map, stages, sides, full, empty,
                                      cluster, clusters, rank);
    }
    __syncwarp();
    if constexpr (PARTS) cluster_sync();
  } else {
    if constexpr (S::kBlocks == 1) take_registers<224>();
    begin_turn();
    const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);  // the same in all lanes, as the compiler sees
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    // The first column: row g of operand 0, then g + 8. Of lanes two warps share 32 columns where each has 16, and take
    // turns with two of a lane's four, so that sixteen lanes at a time read all banks.
    const int of_group = kInLanes<KIND> && kOperands == 1 ? warp / 2 * 32 + 4 * g + (warp + g / 2) % 2 * 2
                                                          : kOperands * (warp * 16 + 2 * g);
    const int column = kOperands * group * 64 + of_group;
    const int word = kInLanes<KIND> ? column / 32 * S::kHalves * (kLaneBytes / 4) + lane * 4 + column % 4
                                    : column + (BITS == 8 ? q / 2 * S::kColumns : 0);
    const uint32_t words = shared_address(stages + S::kPieces * S::kXBytes) + word * 4;
    const uint32_t scales = shared_address(sides) + 2 * column;
    const uint32_t zeros = shared_address(sides) + S::kScaleBytes + column * BITS / 32 * 4;
    const int slots = S::slots(p.group_halves);
    const bool by_piece = slots > 1, by_half = slots == S::kHalves;  // whether these have scales of their own
    Side<T, KIND, kOperands> side(p.zero);
    const uint64_t x_first = matrix_descriptor(stages);
    T* const room = reinterpret_cast<T*>(behind + S::kBarrierBytes) + group * S::kChunk * S::kStoreStride;
    int stage = 0;
    uint32_t round = 0;
    const auto release = [&](int which) {
      __syncwarp();
      if constexpr (PARTS) {
        if (lane == 0) barrier_arrive(&empty[which]);
      } else {
        if (lane < 2) barrier_arrive_remote(&empty[which], lane);
      }
    };

    for (Walk<S, PARTS> walk(p, cluster, clusters); walk.more(); walk.next()) {
      const Place at = walk.at(p, rank);
      float sums[kOperands][R];
#pragma unroll
      for (int i = 0; i < kOperands * R; ++i) sums[i / R][i % R] = 0;
      // While the tensor cores multiply a portion of a stage, the weights of the next are made.
      constexpr int kTogether = S::kTogether, kPortions = S::kPortions;
      // Whether words are read while the portion before is multiplied: not where registers are few. Two blocks hide each
      // other's waiting as well.
      constexpr bool kAhead = kTogether == 1 && S::kBlocks == 1;
      uint32_t a[2][kTogether][2][kOperands][4], raw[kTogether][4][2 * kOperands], of_lane[kTogether][2 * kOperands];
      const auto read = [&](int portion) {
        if (portion == 0) barrier_wait(&full[stage], round);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int half = portion * kTogether + i;
          const uint32_t at_stage = words + stage * S::kStageBytes;
          if constexpr (kInLanes<KIND>) shared_words(of_lane[i], at_stage + half * kLaneBytes);
          else read_words<S>(raw[i], at_stage + half * S::kWBytes / 2);
        }
      };
      int before = -1;  // the stage before
      if (kAhead && at.first < at.last) read(0);
      const auto go = [&](auto turn, int step) {  // on with one portion
        constexpr int kTurn = decltype(turn)::value, portion = kTurn % kPortions;
        const int now = stage;
        const uint64_t x = further(x_first, now * S::kStageBytes / 16);
        if (!kAhead) read(portion);
        auto& made = a[kTurn % 2];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int half = portion * kTogether + i;
          if (half == 0 || (half % 2 == 0 ? by_piece : by_half)) {
            const uint32_t slot = now * S::kSideBytes + (by_half ? half : half / 2) * S::kSlotBytes;
            side.load(p, scales + slot, zeros + slot, column);
          }
          if constexpr (kInLanes<KIND>) make_weights_of_lanes(made[i], of_lane[i], side);
          else make_weights(made[i], raw[i], q, side);
        }
        constexpr bool last = portion == kPortions - 1;
        if (last && ++stage == S::kStages) {
          stage = 0;
          round ^= 1;
        }
#pragma unroll
        for (int i = 0; i < kOperands * R; ++i) cute::warpgroup_fence_operand(sums[i / R][i % R]);
#pragma unroll
        for (int i = 0; i < kTogether * 8 * kOperands; ++i) {  // made before, not after
          cute::warpgroup_fence_operand(made[i / 8 / kOperands][i / 4 / kOperands % 2][i / 4 % kOperands][i % 4]);
        }
        cute::warpgroup_arrive();
#pragma unroll
        for (int i = 0; i < 2 * kTogether; ++i) {
          const int sixteen = 2 * portion * kTogether + i;
          const uint64_t x_at = further(x, sixteen / 4 * S::kXBytes / 16 + 2 * (sixteen % 4));
#pragma unroll
          for (int u = 0; u < kOperands; ++u) {
            wgmma_from_registers<Atom>(made[i / 2][i % 2][u], x_at, sums[u], std::make_index_sequence<R>{});
          }
        }
        cute::warpgroup_commit_batch();
        if (kAhead && (!last || step + 1 < at.last)) read((portion + 1) % kPortions);
        cute::warpgroup_wait<1>();  // for the portion before
        if (portion == 0 && before >= 0) release(before);
        if (last) before = now;
      };
      for (int step = at.first; step < at.last; ++step) {
        go(std::integral_constant<int, 0>{}, step);
        if (kPortions == 1 && ++step == at.last) break;
        go(std::integral_constant<int, 1>{}, step);
        if constexpr (kPortions == 4) {
          go(std::integral_constant<int, 2>{}, step);
          go(std::integral_constant<int, 3>{}, step);
        }
      }
      cute::warpgroup_wait<0>();
#pragma unroll
      for (int i = 0; i < kOperands * R; ++i) cute::warpgroup_fence_operand(sums[i / R][i % R]);
      if (before >= 0) release(before);

      // Register 4j + 2h + e of operand u: column 2u + h of the thread's, row 8j + 2q + e.
      if constexpr (PARTS) {
        auto* const all = reinterpret_cast<float*>(stages);
        sync_consumers();  // both have read what was there
#pragma unroll
        for (int i = 0; i < R / 2; ++i) {
          const int j = i / 2, e = i % 2;
          float* const to = all + (8 * j + 2 * q + e) * S::kSumStride + column;
          if constexpr (kOperands == 2) {
            const float *first = sums[0] + 4 * j + e, *second = sums[1] + 4 * j + e;
            store_vector(to, make_float4(first[0], first[2], second[0], second[2]));
          } else {
            *reinterpret_cast<float2*>(to) = make_float2(sums[0][4 * j + e], sums[0][4 * j + 2 + e]);
          }
        }
        cluster_sync();
        add_parts<T, KIND, S>(p, at, all, rank);
        break;
      } else {
        if (walk.helps()) {
          give<S::kFours>(p.helped.meeting, sums, meeting_place<2, kGroups>(walk.shared(), rank, group), group);
          continue;
        }
        if (walk.shared() >= 0) {
          take<S::kFours>(p.helped.meeting, sums, meeting_place<2, kGroups>(walk.shared(), rank, group), group);
        }
        const int first_column = at.n * S::kColumns + column;
        float bias[2 * kOperands], factor[2 * kOperands];
#pragma unroll
        for (int c = 0; c < 2 * kOperands; ++c) {
          bias[c] = bias_at<T>(p, first_column + c);
          factor[c] = factor_at<KIND>(p, first_column + c);
        }
        constexpr int kAcross = 8 * kOperands;  // threads that store a row
#pragma unroll
        for (int chunk = 0; chunk < S::kRows / S::kChunk; ++chunk) {
          sync_group(group);
#pragma unroll
          for (int i = 0; i < S::kChunk / 4; ++i) {
            const int row = 8 * (i / 2) + 2 * q + i % 2, from = (chunk * (S::kChunk / 8) + i / 2) * 4 + i % 2;
            uint32_t pairs[kOperands];
#pragma unroll
            for (int u = 0; u < kOperands; ++u) {
              float low = sums[u][from], high = sums[u][from + 2];
              if constexpr (kHasFactor<KIND>) low *= factor[2 * u], high *= factor[2 * u + 1];
              pairs[u] = packed<T>(low + bias[2 * u], high + bias[2 * u + 1]);
            }
            T* const to = room + row * S::kStoreStride + of_group;
            if constexpr (kOperands == 2) *reinterpret_cast<uint2*>(to) = make_uint2(pairs[0], pairs[1]);
            else *reinterpret_cast<uint32_t*>(to) = pairs[0];
          }
          sync_group(group);
#pragma unroll
          for (int i = 0; i < S::kChunk * kAcross / 128; ++i) {
            const int index = threadIdx.x % 128 + 128 * i, r = index / kAcross, c = index % kAcross * 8;
            const int row = at.m * S::kRows + chunk * S::kChunk + r;
            if (row < p.m) {
              store_some<T>(p, row, at.n * S::kColumns + group * 64 * kOperands + c,
                            *reinterpret_cast<const uint4*>(room + r * S::kStoreStride + c));
            }
          }
        }
      }
    }
  }
  cluster_sync();  // nobody leaves while others read, or arrive at its barriers
}

}  // namespace
}  // namespace qcore_cuda
