// SM90, many rows: tiles of 64, 128 or 256 rows and 128 columns.
//
// A block of threads has a processor for itself and takes tile after tile. A warp keeps the copy engine
// busy, and two warpgroups multiply. Two blocks with tiles side by side form a cluster: each fetches half
// of a's rows, for both.
//
// With scales by block (a has one for each row and 128 of K, b one for each 128 x 128), the tensor core
// adds 128 products, and those sums are scaled and added in float32; while one warpgroup does that, the
// other has the tensor cores.

#include "scaled_mm.cuh"
#include "sm90_ptx.cuh"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kPiece = 128;  // bytes of K: a row of shared memory, and what a scale by block is for
constexpr int kTileN = 128;
constexpr int kGroups = 2;
constexpr int kConsumers = 128 * kGroups;
constexpr int kThreads = kConsumers + 128;  // registers are given to whole warpgroups
constexpr int kWarpsThatStore = kConsumers / 32;
constexpr int kStoreColumns = 64, kStoreStride = kStoreColumns + 8;
constexpr int kSharedBytes = 227 * 1024;
constexpr int kCluster = 2;
constexpr int kBand = 8;  // tiles along M that are worked on together, so that L2 keeps what they read of a

// What is multiplied, and how sums are scaled.
struct Fp8ByRow {
  using Element = E4m3;
  static constexpr bool kByBlock = false;
};
struct Fp8ByBlock {
  using Element = E4m3;
  static constexpr bool kByBlock = true;
};
struct Int8ByRow {
  using Element = Int8;
  static constexpr bool kByBlock = false;
};

template <typename Element, int COLUMNS>
struct Atom;
#define QCORE_ATOM(COLUMNS)                                                                             \
  template <>                                                                                           \
  struct Atom<E4m3, COLUMNS> {                                                                          \
    using Type = gmma::MMA_64x##COLUMNS##x32_F32E4M3E4M3_SS_TN<gmma::ScaleIn::One, gmma::ScaleIn::One>; \
    using Register = float;                                                                             \
  };                                                                                                    \
  template <>                                                                                           \
  struct Atom<Int8, COLUMNS> {                                                                          \
    using Type = gmma::MMA_64x##COLUMNS##x32_S32S8S8_SS_TN;                                             \
    using Register = uint32_t;                                                                          \
  };
QCORE_ATOM(64)
QCORE_ATOM(128)
#undef QCORE_ATOM

// Warpgroups side by side along M, or else along N; each has PARTS times 64 rows.
template <bool ALONG_M, int PARTS>
struct Shape {
  static constexpr bool kAlongM = ALONG_M;
  static constexpr int kParts = PARTS;
  static constexpr int kRows = 64 * PARTS * (ALONG_M ? kGroups : 1);
  static constexpr int kColumns = kTileN / (ALONG_M ? 1 : kGroups);  // of a warpgroup
  static constexpr int kABytes = kRows * kPiece, kBBytes = kTileN * kPiece;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kStoreBytes = kWarpsThatStore * 16 * kStoreStride * 2;
  static constexpr int kStages = (kSharedBytes - 1024 - 1024 - kStoreBytes) / kStageBytes;
};

struct Tiles {
  int along_m, pairs;  // pairs: along N, of tiles

  __device__ int count() const { return along_m * pairs; }
  // A band of kBand tiles along M, pair by pair; then the next.
  __device__ void place(int index, int& m, int& pair) const {
    const int band = index / (kBand * pairs), first = band * kBand;
    const int width = min(kBand, along_m - first), in_band = index - first * pairs;
    m = first + in_band % width;
    pair = in_band / width;
  }
};

template <typename Register, int COUNT>
__device__ __forceinline__ void fence_registers(Register (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) cute::warpgroup_fence_operand(d[i]);
}

// The scales by block of a thread's rows and columns.
template <typename S>
struct BlockScales {
  const float* of_a[S::kParts][2];
  const float* of_b;
  float a[S::kParts][2], b;

  __device__ __forceinline__ BlockScales(const ScaledMM& p, int row, int tile_n) {
#pragma unroll
    for (int i = 0; i < S::kParts * 2; ++i) {
      of_a[i / 2][i % 2] = p.a_scale + min(row + i / 2 * 64 + i % 2 * 8, p.m - 1) * p.a_scale_m;
    }
    of_b = p.b_scale + min(tile_n, (p.n - 1) / kTileN) * p.b_scale_n;
  }
  __device__ __forceinline__ void load(const ScaledMM& p, int step) {
#pragma unroll
    for (int i = 0; i < S::kParts * 2; ++i) a[i / 2][i % 2] = __ldg(of_a[i / 2][i % 2] + step * p.a_scale_k);
    b = __ldg(of_b + step * p.b_scale_k);
  }
};

template <typename S>
__device__ __forceinline__ void fetch(const ScaledMM& p, const Tiles& tiles, const CUtensorMap* a_map,
                                      const CUtensorMap* b_map, uint8_t* stages, uint64_t* full, uint64_t* empty) {
  constexpr uint16_t kBoth = (1 << kCluster) - 1;
  constexpr int kHalf = S::kRows / kCluster;
  const int rank = static_cast<int>(cluster_rank());
  const int steps = (p.k + kPiece - 1) / kPiece;
  int stage = 0;
  uint32_t round = 1;  // the first time the stages are free
  for (int index = blockIdx.x / kCluster; index < tiles.count(); index += gridDim.x / kCluster) {
    int m, pair;
    tiles.place(index, m, pair);
    const int column = (pair * kCluster + rank) * kTileN;  // beyond the end zeros come
    for (int step = 0; step < steps; ++step) {
      barrier_wait(&empty[stage], round);
      barrier_expect(&full[stage], S::kStageBytes);
      uint8_t* const at = stages + stage * S::kStageBytes;
      load_box_for(kBoth, at + rank * kHalf * kPiece, a_map, &full[stage], step * kPiece, m * S::kRows + rank * kHalf);
      load_box(at + S::kABytes, b_map, &full[stage], step * kPiece, column, kEvictNormal);
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    }
  }
}

// 16 rows of a warp, through shared memory, so that they leave in pieces of 16 bytes.
template <typename S, typename Acc, typename Register, typename Out>
__device__ __forceinline__ void store(const ScaledMM& p, const Register (&sums)[S::kColumns / 2], Out* room, int row,
                                      int column) {
  const ScaledEnd<Out> end(p);
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const typename ScaledEnd<Out>::Row rows[2] = {end.row(min(row + g, p.m - 1)), end.row(min(row + g + 8, p.m - 1))};
#pragma unroll
  for (int pass = 0; pass < S::kColumns / kStoreColumns; ++pass) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kStoreColumns / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const auto of_column = end.column(min(column + pass * kStoreColumns + j * 8 + 2 * q + c, p.n - 1));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          Acc sum;
          __builtin_memcpy(&sum, &sums[pass * kStoreColumns / 2 + j * 4 + h * 2 + c], 4);
          room[(g + 8 * h) * kStoreStride + j * 8 + 2 * q + c] = from_float<Out>(end.value(rows[h], of_column, sum));
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i * 4 + lane / 8, c = lane % 8 * 8;
      const int m = row + r, n = column + pass * kStoreColumns + c;
      if (m < p.m && n < p.n) {  // N is a multiple of 8
        *reinterpret_cast<uint4*>(static_cast<Out*>(p.out) + m * p.out_stride + n) =
            *reinterpret_cast<const uint4*>(room + r * kStoreStride + c);
      }
    }
  }
}

template <typename Kind, typename S, typename Out>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                 const __grid_constant__ ScaledMM p, const Tiles tiles) {
  extern __shared__ uint8_t raw[];
  uint8_t* stages = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});
  auto* room = reinterpret_cast<Out*>(stages + S::kStages * S::kStageBytes);
  auto* full = reinterpret_cast<uint64_t*>(reinterpret_cast<uint8_t*>(room) + S::kStoreBytes);
  uint64_t* empty = full + S::kStages;

  if (threadIdx.x == kConsumers) {
    prefetch_map(&a_map);
    prefetch_map(&b_map);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kGroups * kCluster);  // a's rows come to both, so both must have read theirs
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kConsumers) fetch<S>(p, tiles, &a_map, &b_map, stages, full, empty);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    using A = Atom<typename Kind::Element, S::kColumns>;
    using Register = typename A::Register;
    constexpr int kRegisters = S::kColumns / 2;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int rank = static_cast<int>(cluster_rank());
    const int group_row = S::kAlongM ? group * 64 * S::kParts : 0;
    const int group_column = S::kAlongM ? 0 : group * S::kColumns;
    const int steps = (p.k + kPiece - 1) / kPiece;
    Out* const my_room = room + threadIdx.x / 32 * 16 * kStoreStride;
    int stage = 0;
    uint32_t round = 0;
    const auto advance = [&] {
      if (++stage == S::kStages) {
        stage = 0;
        round ^= 1;
      }
    };
    const auto release = [&](int which) {
      if (threadIdx.x % 128 < kCluster) barrier_arrive_remote(&empty[which], threadIdx.x % 128);
    };
    // d (+)= a part's rows times the columns, for what is in the stage.
    const auto multiply = [&](Register(&d)[kRegisters], int part, bool add) {
      const uint8_t* const at = stages + stage * S::kStageBytes;
      const uint64_t a = matrix_descriptor(at + (group_row + part * 64) * kPiece);
      const uint64_t b = matrix_descriptor(at + S::kABytes + group_column * kPiece);
#pragma unroll
      for (int i = 0; i < kPiece / 32; ++i) {
        wgmma<typename A::Type>(a + 2 * i, b + 2 * i, d, add || i > 0, std::make_index_sequence<kRegisters>{});
      }
    };

    for (int index = blockIdx.x / kCluster; index < tiles.count(); index += gridDim.x / kCluster) {
      int m, pair;
      tiles.place(index, m, pair);
      const int tile_n = pair * kCluster + rank;
      const int row = m * S::kRows + group_row + warp * 16;
      Register total[S::kParts][kRegisters];
#pragma unroll
      for (int i = 0; i < S::kParts * kRegisters; ++i) total[i / kRegisters][i % kRegisters] = 0;

      if constexpr (Kind::kByBlock) {
        BlockScales<S> scales(p, row + lane / 4, tile_n);
        scales.load(p, 0);
        for (int step = 0; step < steps; ++step) {
          const BlockScales<S> now = scales;
          scales.load(p, min(step + 1, steps - 1));
          barrier_wait(&full[stage], round);
#pragma unroll
          for (int part = 0; part < S::kParts; ++part) {
            Register d[kRegisters];
            fence_registers(d);
            cute::warpgroup_arrive();
            multiply(d, part, false);
            cute::warpgroup_commit_batch();
            cute::warpgroup_wait<0>();
            fence_registers(d);
            if (part == S::kParts - 1) release(stage);
            const float of_row[2] = {now.a[part][0] * now.b, now.a[part][1] * now.b};
#pragma unroll
            for (int i = 0; i < kRegisters; ++i) total[part][i] = fmaf(d[i], of_row[i % 4 / 2], total[part][i]);
          }
          advance();
        }
      } else {
        int before = -1;
        for (int step = 0; step < steps; ++step) {
          barrier_wait(&full[stage], round);
#pragma unroll
          for (int part = 0; part < S::kParts; ++part) fence_registers(total[part]);
          cute::warpgroup_arrive();
#pragma unroll
          for (int part = 0; part < S::kParts; ++part) multiply(total[part], part, true);
          cute::warpgroup_commit_batch();
          cute::warpgroup_wait<1>();  // those of the step before
          if (before >= 0) release(before);
          before = stage;
          advance();
        }
        cute::warpgroup_wait<0>();
#pragma unroll
        for (int part = 0; part < S::kParts; ++part) fence_registers(total[part]);
        release(before);
      }
#pragma unroll
      for (int part = 0; part < S::kParts; ++part) {
        store<S, typename Kind::Element::Acc>(p, total[part], my_room, row + part * 64, tile_n * kTileN + group_column);
      }
    }
  }
  cluster_sync();  // the other's barriers and rows come from here until both are done
}

template <typename Kind, typename S, typename Out>
void launch(const ScaledMM& p) {
  const char* op = "cutlass_scaled_mm";
  const auto kernel = tiles_kernel<Kind, S, Out>;
  static_assert(S::kStages >= 3 && S::kStages * 16 <= 1024);
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kSharedBytes, p.device, allowed);
  const CUtensorMap a_map = byte_matrix_map(op, p.a, p.m, p.k, p.a_stride, S::kRows / kCluster);
  const CUtensorMap b_map = byte_matrix_map(op, p.b, p.n, p.k, p.b_stride, kTileN);
  const Tiles tiles{static_cast<int>(ceil_div(p.m, S::kRows)), static_cast<int>(ceil_div(p.n, kTileN * kCluster))};
  const int64_t clusters = std::min<int64_t>(int64_t{tiles.along_m} * tiles.pairs, p.sm_count / kCluster);
  kernel<<<static_cast<unsigned>(clusters * kCluster), kThreads, kSharedBytes, p.stream>>>(a_map, b_map, p, tiles);
}

template <typename S, typename Out>
void launch_kind(const ScaledMM& p) {
  if (!p.is_fp8) return launch<Int8ByRow, S, Out>(p);
  p.by_block ? launch<Fp8ByBlock, S, Out>(p) : launch<Fp8ByRow, S, Out>(p);
}

template <typename Out>
void launch_rows(const ScaledMM& p, int rows) {
  if (rows == 64) return launch_kind<Shape<false, 1>, Out>(p);
  if (rows == 128) return launch_kind<Shape<true, 1>, Out>(p);
  launch_kind<Shape<true, 2>, Out>(p);
}

}  // namespace

void scaled_mm_sm90_tiles(const ScaledMM& p, int rows) {
  p.out_bf16 ? launch_rows<__nv_bfloat16>(p, rows) : launch_rows<__half>(p, rows);
}

}  // namespace qcore_cuda
