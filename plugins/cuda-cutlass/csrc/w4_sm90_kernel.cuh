// SM90: many rows times packed weights of 4 or 8 bits, integers or floats. Weights become 16-bit floats in registers
// and are the left operand of wgmma, so that they are read from memory as they are packed; activations
// are the right operand, from shared memory. The product is thus out^T = W^T x^T.
//
// A block of threads takes tiles of 128 columns of the weight and 64, 128 or 256 rows of activations. One
// thread keeps the copy engine busy with stages of one or two pieces of 64 inputs (activations, packed weights,
// scales, zero points); two warpgroups have 64 columns each. While the tensor cores multiply a piece, the weights
// of the next are made: (code - zero) is exact in 16 bits, times the scale it is rounded once, as if
// the whole weight had been dequantized to that type. Tiles of 64 rows leave room for two blocks on a
// processor: while one makes weights, the other multiplies.
//
// A thread has two columns that are neighbours, rows g and g + 8 of the operand: any order of columns will do that
// the sums are stored in, and so their words, scales and zero points are one load each.
//
// Where there are tiles for all processors, two blocks side by side form a cluster, in which each fetches
// half of the activations, for both. Where there are few, the blocks of a cluster have a part of K each
// and add up through shared memory, in the same order always.
#pragma once

#include "early_launch.cuh"
#include "gptq.cuh"
#include "sm90_ptx.cuh"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kPieceK = 64;  // inputs: 128 bytes of activations
constexpr int kTileN = 128;
constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kSharedOfProcessor = 227 * 1024;
constexpr int kBand = 8;                   // tiles along M that are worked on together
constexpr int kChunk = 64;                 // rows of a tile that are stored together
constexpr int kStoreStride = 64 + 8;       // elements, for 64 columns; the 8 keep rows apart in banks
constexpr int kSumStride = kTileN + 4;     // floats
constexpr int kScaleBytes = kTileN * 2, kZeroBytes = 128;

struct Problem {
  const float* column_scales;  // [n]; or null; of floats
  const void* bias;
  void* out;
  int m, n, k_stages;  // n: columns of out
  int group_halves;    // inputs of a group / 32
  int zero;            // for all, where there are no zero points
  uint32_t zero_ones;  // added to words of zero points: version 1 of the format stores them less one
  bool has_zeros, bias_float;
  int tiles_m, tiles_n, parts;
};

template <typename T, int ROWS>
struct AtomOf;
#define QCORE_ATOM(TYPE, NAME, ROWS)                                                                \
  template <>                                                                                       \
  struct AtomOf<TYPE, ROWS> {                                                                       \
    using Type = gmma::MMA_64x##ROWS##x16_F32##NAME##_RS<gmma::Major::K, gmma::Major::K>;           \
  };
QCORE_ATOM(__half, F16F16, 64)
QCORE_ATOM(__half, F16F16, 128)
QCORE_ATOM(__half, F16F16, 256)
QCORE_ATOM(__nv_bfloat16, BF16BF16, 64)
QCORE_ATOM(__nv_bfloat16, BF16BF16, 128)
QCORE_ATOM(__nv_bfloat16, BF16BF16, 256)
#undef QCORE_ATOM

template <int BITS, int ROWS>
struct Shape {
  static constexpr int kRows = ROWS, kRegisters = ROWS / 2;
  static constexpr int kBlocks = ROWS == 64 ? 2 : 1;  // on a processor
  // A block alone gives registers of its last warpgroup, which needs few, to the others.
  static constexpr int kThreads = kConsumers + (kBlocks == 2 ? 32 : 128);
  static constexpr int kSharedBytes = (kSharedOfProcessor - (kBlocks - 1) * 1024) / kBlocks / 128 * 128;
  // A stage has two pieces where they are small, and half as many copies and barriers.
  static constexpr int kPieces = BITS == 4 && ROWS <= 128 ? 2 : 1;
  static constexpr int kStageK = kPieces * kPieceK, kHalves = 2 * kPieces;
  static constexpr int kWordRows = kPieceK * BITS / 32;  // of a piece
  static constexpr int kXBytes = ROWS * kPieceK * 2, kWBytes = kWordRows * kTileN * 4;
  static constexpr int kZeroWords = kTileN * BITS / 32;
  static constexpr int kStageBytes = kPieces * (kXBytes + kWBytes);  // activations, then words
  static constexpr int kSideBytes = kHalves * (kScaleBytes + kZeroBytes);  // scales, then zero points
  static constexpr int kStoreBytes = kGroups * kChunk * kStoreStride * 2;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kStages = (kSharedBytes - 1024 - kStoreBytes - kBarrierBytes) / (kStageBytes + kSideBytes);
  static_assert(kStages * 16 <= kBarrierBytes && kStages * kStageBytes >= ROWS * kSumStride * 4);

  // Scales that a stage brings for each column: of the groups that begin or go on in it.
  static __host__ __device__ constexpr int slots(int group_halves) {
    return group_halves % kHalves == 0 ? 1 : group_halves % 2 == 0 ? kPieces : kHalves;
  }
};

__device__ __forceinline__ uint32_t shared_word(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ uint2 shared_pair(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}

// A tile that blocks of a cluster share along N (`pair`), or a part of K of a tile.
struct Place {
  int m, n, first, last;  // tiles; stages of K
};

template <bool PARTS>
__device__ __forceinline__ bool place(const Problem& p, int index, int rank, Place& at) {
  if constexpr (PARTS) {
    if (index >= p.tiles_m * p.tiles_n) return false;
    at.m = index / p.tiles_n;
    at.n = index % p.tiles_n;
    at.first = p.k_stages * rank / p.parts;
    at.last = p.k_stages * (rank + 1) / p.parts;
  } else {
    const int pairs = (p.tiles_n + 1) / 2;
    if (index >= p.tiles_m * pairs) return false;
    // A band of kBand tiles along M, pair by pair; then the next.
    const int band = index / (kBand * pairs), first = band * kBand;
    const int width = min(kBand, p.tiles_m - first), in_band = index - first * pairs;
    at.m = first + in_band % width;
    at.n = in_band / width * 2 + rank;  // beyond the end zeros come
    at.first = 0;
    at.last = p.k_stages;
  }
  return true;
}

// What a thread needs of a group: for its two columns, which are neighbours.
template <typename T, class KIND>
struct Side {
  static constexpr int BITS = KIND::kBits;

  typename Codes<KIND, T>::Zero zero[KIND::kScaled ? 2 : 1][2];  // of each 16 inputs, if they have their own scales
  typename PairOf<T>::Type scale[2];

  __device__ __forceinline__ explicit Side(int constant) {
    zero[0][0] = zero[0][1] = Codes<KIND, T>::zero(static_cast<uint32_t>(constant));
  }
  // `scales`: of the first column; `zeros`: its word.
  __device__ __forceinline__ void load(const Problem& p, uint32_t scales, uint32_t zeros, int column) {
    const uint32_t bits = shared_word(scales);
    if constexpr (KIND::kScaled) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        zero[0][h] = Codes<KIND, T>::zero_of(bits, 2 * h);
        zero[1][h] = Codes<KIND, T>::zero_of(bits, 2 * h + 1);
      }
    } else {
      scale[0] = as_pair<T>(__byte_perm(bits, 0, 0x1010));
      scale[1] = as_pair<T>(__byte_perm(bits, 0, 0x3232));
      if (!KIND::kFloat && p.has_zeros) {
        const uint32_t word = (shared_word(zeros) + p.zero_ones) >> (column * BITS % 32);
        zero[0][0] = Codes<KIND, T>::zero(word & ((1u << BITS) - 1));
        zero[0][1] = Codes<KIND, T>::zero(word >> BITS & ((1u << BITS) - 1));
      }
    }
  }
};

// The words that hold a thread's weights of a piece: of two columns, for each 16 inputs those of inputs 2q and
// 2q + 1, then of those 8 further on.
template <int BITS>
__device__ __forceinline__ void read_words(uint32_t (&raw)[4][4], uint32_t words) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint2 both = shared_pair(words + i * (BITS / 4) * kTileN * 4);
    raw[i / 2][i % 2 * 2] = both.x;
    raw[i / 2][i % 2 * 2 + 1] = both.y;
  }
}

// As the left operand's registers: the first 16 inputs of half of a piece, or the other ones.
template <typename T, class KIND>
__device__ __forceinline__ void make_weights(uint32_t (&a)[4], const uint32_t (&raw)[4], int sixteen, int q,
                                             const Side<T, KIND>& side) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = pair_at<KIND, T>(raw[i], q, side.zero[KIND::kScaled ? sixteen : 0][i % 2]);
    if constexpr (!KIND::kScaled) a[i] = as_bits(__hmul2(as_pair<T>(a[i]), side.scale[i % 2]));
  }
}

__device__ __forceinline__ void sync_group(int group) { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); }
__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 3, %0;" ::"n"(kConsumers) : "memory"); }

template <typename T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  if constexpr (std::is_same<T, __half>::value) return as_bits(__floats2half2_rn(low, high));
  else return as_bits(__floats2bfloat162_rn(low, high));
}

template <typename T>
__device__ __forceinline__ float bias_at(const Problem& p, int column) {
  if (!p.bias || column >= p.n) return 0.0f;
  return p.bias_float ? static_cast<const float*>(p.bias)[column] : from_16(static_cast<const T*>(p.bias)[column]);
}

// What a column's sums are multiplied by.
template <class KIND>
__device__ __forceinline__ float factor_at(const Problem& p, int column) {
  if constexpr (KIND::kFloat) return p.column_scales && column < p.n ? p.column_scales[column] * KIND::kMore : 1.0f;
  return 1.0f;
}

// Eight columns of a row of out, as far as there are columns.
template <typename T>
__device__ __forceinline__ void store_eight(const Problem& p, int row, int column, const uint4& eight) {
  T* const to = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.n + column;
  if (p.n % 8 == 0) {
    if (column < p.n) *reinterpret_cast<uint4*>(to) = eight;
  } else {
    const T* const from = reinterpret_cast<const T*>(&eight);
    for (int i = 0; i < 8 && column + i < p.n; ++i) to[i] = from[i];
  }
}

// By one thread.
template <typename S, bool PARTS>
__device__ __forceinline__ void fetch(const Problem& p, const CUtensorMap* x_map, const CUtensorMap* w_map,
                                      const CUtensorMap* scale_map, const CUtensorMap* zero_map, uint8_t* stages,
                                      uint8_t* sides, uint64_t* full, uint64_t* empty, int cluster, int clusters,
                                      int rank) {
  constexpr int kFetched = PARTS ? S::kRows : S::kRows / 2;
  const int slots = S::slots(p.group_halves);
  const uint32_t bytes = S::kStageBytes + slots * (kScaleBytes + (p.has_zeros ? S::kZeroWords * 4 : 0));
  GroupCounter of(p.group_halves);
  const auto load_weights = [&](const Place& at, int step, int stage) {
    barrier_expect(&full[stage], bytes);
    uint8_t* side = sides + stage * S::kSideBytes;
    const int column = at.n * kTileN;
    load_box(stages + stage * S::kStageBytes + S::kPieces * S::kXBytes, w_map, &full[stage], column,
             step * S::kPieces * S::kWordRows, kEvictNormal);
    for (int slot = 0; slot < slots; ++slot, side += kScaleBytes + kZeroBytes) {
      load_box(side, scale_map, &full[stage], column, of.group, kEvictNormal);
      if (p.has_zeros) {
        load_box(side + kScaleBytes, zero_map, &full[stage], at.n * S::kZeroWords, of.group, kEvictNormal);
      }
      of.next(S::kHalves / slots);
    }
  };
  Place at;
  int early = 0;  // stages whose weights come before this kernel's turn
  if (place<PARTS>(p, cluster, rank, at)) {
    of.begin(S::kHalves * at.first);
    for (early = 0; early < min(S::kStages, at.last - at.first); ++early) load_weights(at, at.first + early, early);
  }
  begin_turn();
  int stage = 0;
  uint32_t round = 1;  // the first time the stages are free
  for (int index = cluster; place<PARTS>(p, index, rank, at); index += clusters) {
    if (index != cluster) of.begin(S::kHalves * at.first);
    for (int step = at.first; step < at.last; ++step) {
      barrier_wait(&empty[stage], round);
      if (early-- <= 0) load_weights(at, step, stage);
      uint8_t* const to = stages + stage * S::kStageBytes;
      const int row = at.m * S::kRows;
#pragma unroll
      for (int i = 0; i < S::kPieces; ++i) {
        const int byte = (step * S::kPieces + i) * 128;
        if constexpr (PARTS) {
          load_box(to + i * S::kXBytes, x_map, &full[stage], byte, row, kEvictLast);
        } else {
          const int part = rank * kFetched;
          load_box_for(3, to + i * S::kXBytes + part * 128, x_map, &full[stage], byte, row + part);
        }
      }
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    }
  }
}

// The sums of all parts of K, a share of the rows for each block.
template <typename T, class KIND, typename S>
__device__ __forceinline__ void add_parts(const Problem& p, const Place& at, const float* sums, int rank) {
  const int rows = min(S::kRows, p.m - at.m * S::kRows), each = (rows + p.parts - 1) / p.parts, begin = rank * each;
  const int wanted = min(each, rows - begin) * (kTileN / 8);
  for (int i = threadIdx.x; i < wanted; i += kConsumers) {
    const int row = begin + i / (kTileN / 8), column = i % (kTileN / 8) * 8;
    const uint32_t mine = shared_address(sums + row * kSumStride + column);
    float total[8] = {};
    for (int part = 0; part < p.parts; ++part) {
      uint32_t there;
      asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(mine), "r"(part));
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        float v[4];
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                     : "r"(there + 4 * j)
                     : "memory");
#pragma unroll
        for (int e = 0; e < 4; ++e) total[j + e] += v[e];
      }
    }
    const int n = at.n * kTileN + column;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if constexpr (KIND::kFloat) total[j] *= factor_at<KIND>(p, n + j);
      total[j] += bias_at<T>(p, n + j);
    }
    store_eight<T>(p, at.m * S::kRows + row, n,
                   make_uint4(packed<T>(total[0], total[1]), packed<T>(total[2], total[3]),
                              packed<T>(total[4], total[5]), packed<T>(total[6], total[7])));
  }
}

template <typename T, class KIND, int ROWS, bool PARTS>
__global__ void __launch_bounds__(Shape<KIND::kBits, ROWS>::kThreads, Shape<KIND::kBits, ROWS>::kBlocks)
    w4_sm90_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ CUtensorMap scale_map, const __grid_constant__ CUtensorMap zero_map,
                   const __grid_constant__ Problem p) {
  constexpr int BITS = KIND::kBits;
  using S = Shape<BITS, ROWS>;
  using Atom = typename AtomOf<T, ROWS>::Type;
  constexpr int R = S::kRegisters;

  extern __shared__ uint8_t raw[];
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
    if constexpr (S::kBlocks == 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (threadIdx.x < kConsumers + 32 && elect_one()) {
      fetch<S, PARTS>(p, &x_map, &w_map, &scale_map, &zero_map, stages, sides, full, empty, cluster, clusters, rank);
    }
    __syncwarp();
    if constexpr (PARTS) cluster_sync();
  } else {
    if constexpr (S::kBlocks == 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    begin_turn();
    const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);  // the same in all lanes, as the compiler sees
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int column = group * 64 + warp * 16 + 2 * g;  // and the next: rows g and g + 8 of the operand
    const uint32_t words =
        shared_address(stages + S::kPieces * S::kXBytes) + (column + (BITS == 8 ? q / 2 * kTileN : 0)) * 4;
    const uint32_t scales = shared_address(sides) + 2 * column;
    const uint32_t zeros = shared_address(sides) + kScaleBytes + column * BITS / 32 * 4;
    const int slots = S::slots(p.group_halves);
    const bool by_piece = slots > 1, by_half = slots == S::kHalves;  // whether these have scales of their own
    Side<T, KIND> side(p.zero);
    const uint64_t x_first = matrix_descriptor(stages);
    T* const room = reinterpret_cast<T*>(behind + S::kBarrierBytes) + group * kChunk * kStoreStride;
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

    Place at;
    for (int index = cluster; place<PARTS>(p, index, rank, at); index += clusters) {
      float sums[R];
#pragma unroll
      for (int i = 0; i < R; ++i) sums[i] = 0;
      // While the tensor cores multiply one piece, the weights of the next are made.
      uint32_t a[2][4][4];
      const auto make = [&](auto which) {
        constexpr int kWhich = decltype(which)::value, kPiece = kWhich % S::kPieces;
        if (kPiece == 0) barrier_wait(&full[stage], round);
        uint32_t raw[4][4];
        read_words<BITS>(raw, words + stage * S::kStageBytes + kPiece * S::kWBytes);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half == 1 ? by_half : kPiece == 0 || by_piece) {
            const int slot = by_half ? 2 * kPiece + half : kPiece;
            const uint32_t at_slot = stage * S::kSideBytes + slot * (kScaleBytes + kZeroBytes);
            side.load(p, scales + at_slot, zeros + at_slot, column);
          }
          make_weights<T, KIND>(a[kWhich][2 * half], raw[2 * half], 0, q, side);
          make_weights<T, KIND>(a[kWhich][2 * half + 1], raw[2 * half + 1], 1, q, side);
        }
        const int made = stage;
        if (kPiece == S::kPieces - 1 && ++stage == S::kStages) {
          stage = 0;
          round ^= 1;
        }
        return made;
      };
      const auto multiply = [&](auto which, int at_stage) {
        constexpr int kWhich = decltype(which)::value, kPiece = kWhich % S::kPieces;
        const uint64_t x = further(x_first, (at_stage * S::kStageBytes + kPiece * S::kXBytes) / 16);
#pragma unroll
        for (int j = 0; j < R; ++j) cute::warpgroup_fence_operand(sums[j]);
#pragma unroll
        for (int j = 0; j < 16; ++j) cute::warpgroup_fence_operand(a[kWhich][j / 4][j % 4]);  // made before, not after
        cute::warpgroup_arrive();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          wgmma_from_registers<Atom>(a[kWhich][i], further(x, 2 * i), sums, std::make_index_sequence<R>{});
        }
        cute::warpgroup_commit_batch();
        cute::warpgroup_wait<1>();  // for the piece before
      };
      constexpr std::integral_constant<int, 0> kFirst;
      constexpr std::integral_constant<int, 1> kSecond;
      int first = -1, second = -1;  // stages that are in use
      for (int step = at.first; step < at.last; ++step) {
        first = make(kFirst);
        multiply(kFirst, first);
        if (second >= 0) release(second);
        second = -1;
        if (S::kPieces == 1 && ++step == at.last) break;
        second = make(kSecond);
        multiply(kSecond, second);
        if (S::kPieces == 1) release(first);
        first = -1;
      }
      cute::warpgroup_wait<0>();
#pragma unroll
      for (int i = 0; i < R; ++i) cute::warpgroup_fence_operand(sums[i]);
      if (second >= 0) release(second);
      else if (first >= 0) release(first);

      // Register 4j + 2h + e: column 2g + h of the warp's, row 8j + 2q + e.
      if constexpr (PARTS) {
        auto* const all = reinterpret_cast<float*>(stages);
        sync_consumers();  // both have read what was there
#pragma unroll
        for (int i = 0; i < R / 2; ++i) {
          const int j = i / 2, e = i % 2;
          auto* const to = reinterpret_cast<float2*>(all + (8 * j + 2 * q + e) * kSumStride + column);
          *to = make_float2(sums[4 * j + e], sums[4 * j + 2 + e]);
        }
        cluster_sync();
        add_parts<T, KIND, S>(p, at, all, rank);
        break;
      } else {
        const int first_column = at.n * kTileN + column;
        const float bias[2] = {bias_at<T>(p, first_column), bias_at<T>(p, first_column + 1)};
        if constexpr (KIND::kFloat) {
          const float factor[2] = {factor_at<KIND>(p, first_column), factor_at<KIND>(p, first_column + 1)};
#pragma unroll
          for (int i = 0; i < R; ++i) sums[i] *= factor[i / 2 % 2];
        }
#pragma unroll
        for (int chunk = 0; chunk < ROWS / kChunk; ++chunk) {
          sync_group(group);
#pragma unroll
          for (int i = 0; i < kChunk / 4; ++i) {
            const int row = 8 * (i / 2) + 2 * q + i % 2;
            const float* const d = sums + (chunk * (kChunk / 8) + i / 2) * 4 + i % 2;
            *reinterpret_cast<uint32_t*>(room + row * kStoreStride + 16 * warp + 2 * g) =
                packed<T>(d[0] + bias[0], d[2] + bias[1]);
          }
          sync_group(group);
#pragma unroll
          for (int i = 0; i < kChunk * 8 / 128; ++i) {
            const int r = (threadIdx.x % 128 + 128 * i) / 8, c = threadIdx.x % 8 * 8;
            const int row = at.m * ROWS + chunk * kChunk + r;
            if (row < p.m) {
              store_eight<T>(p, row, at.n * kTileN + group * 64 + c,
                             *reinterpret_cast<const uint4*>(room + r * kStoreStride + c));
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
