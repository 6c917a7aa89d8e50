// SM90, few rows (M <= 64): a product that takes as long as reading b does.
//
// Rows and columns change places: b's columns are the 64 rows of a wgmma, a's rows its N. The K of a
// tile of 64 columns is shared by a cluster of four blocks, whose sums meet through distributed shared
// memory, always in the same order. Each cluster goes through its tiles: of a block's twelve warps
// eight multiply, four the even and four the odd pieces of K, as one chain of products is too slow; one
// keeps the copy engine busy with what comes next, across tiles; and three add up and store what the
// eight are done with.

#include "scaled_mm.cuh"
#include "sm90_ptx.cuh"
#include "tensor_map.h"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kCluster = 4;
constexpr int kColumns = 64;     // of b in a tile
constexpr int kChunk = 128;      // bytes of K in a stage
constexpr int kGroups = 2;       // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kEpilogue = 96;
constexpr int kThreads = kConsumers + 32 + kEpilogue;

template <typename Element, int ROWS>
struct Atom;
#define QCORE_ATOM(ROWS)                                                                        \
  template <>                                                                                   \
  struct Atom<E4m3, ROWS> {                                                                     \
    using Type = gmma::MMA_64x##ROWS##x32_F32E4M3E4M3_SS_TN<gmma::ScaleIn::One, gmma::ScaleIn::One>; \
    using Register = float;                                                                     \
  };                                                                                            \
  template <>                                                                                   \
  struct Atom<Int8, ROWS> {                                                                     \
    using Type = gmma::MMA_64x##ROWS##x32_S32S8S8_SS_TN;                                        \
    using Register = uint32_t;                                                                  \
  };
QCORE_ATOM(8)
QCORE_ATOM(16)
QCORE_ATOM(32)
QCORE_ATOM(64)
#undef QCORE_ATOM

template <typename Acc, int ROWS>
struct Shared {
  static constexpr int kStageBytes = (kColumns + ROWS) * kChunk;
  static constexpr int kSumBytes = 2 * kGroups * ROWS * (kColumns + 1) * 4;
  static constexpr int kStages = (224 * 1024 - kSumBytes) / (kStageBytes + 16) / 2 * 2;
  static constexpr int kPad = 1;  // columns of the sums lie in different banks

  alignas(1024) uint8_t b[kStages][kColumns * kChunk];
  alignas(1024) uint8_t a[kStages][ROWS * kChunk];
  Acc sums[2][kGroups][ROWS][kColumns + kPad];
  uint64_t full[kStages], empty[kStages];
  uint64_t summed[2], read[2];  // the cluster's sums are there; have been read
};

template <typename Element, typename Out, int ROWS>
__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ CUtensorMap b_map, const __grid_constant__ CUtensorMap a_map, int m, int n,
                  int k, ScaledEnd<Out> end) {
  using Acc = typename Element::Acc;
  using S = Shared<Acc, ROWS>;
  extern __shared__ uint8_t raw[];
  S& shared = *reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(raw) + 1023) & ~uintptr_t{1023});

  const uint32_t rank = cluster_rank();
  const int cluster = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  const int tiles = (n + kColumns - 1) / kColumns;
  const int chunks = (k + kChunk - 1) / kChunk;
  const int first_chunk = static_cast<int>(static_cast<int64_t>(chunks) * rank / kCluster);
  const int last_chunk = static_cast<int>(static_cast<int64_t>(chunks) * (rank + 1) / kCluster);

  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], 1);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.summed[i], kCluster);
      barrier_init(&shared.read[i], kCluster);
    }
    barrier_init_fence();
  }
  cluster_sync();

  if (threadIdx.x >= kConsumers + 32) {
    const int worker = threadIdx.x - kConsumers - 32;
    constexpr int kShare = kColumns / kCluster;  // a quarter of the columns for each block
    int turn = 0;
    for (int tile = cluster; tile < tiles; tile += clusters, ++turn) {
      const auto& sums = shared.sums[turn % 2];
      barrier_wait(&shared.summed[turn % 2], turn / 2 % 2);
#pragma unroll 4
      for (int item = worker; item < m * kShare; item += kEpilogue) {
        const int row = item / kShare, column = static_cast<int>(rank) * kShare + item % kShare;
        Acc parts[kCluster * kGroups], sum = 0;
#pragma unroll
        for (int r = 0; r < kCluster * kGroups; ++r) {
          parts[r] = load_remote(&sums[r % kGroups][row][column], r / kGroups);
        }
#pragma unroll
        for (int r = 0; r < kCluster * kGroups; ++r) sum += parts[r];
        const int at = tile * kColumns + column;
        if (at < n) end.store(row, at, sum);
      }
      asm volatile("bar.sync 2, %0;" ::"n"(kEpilogue) : "memory");
      if (worker < kCluster) barrier_arrive_remote(&shared.read[turn % 2], worker);
    }
  } else if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) {
      prefetch_map(&b_map);
      prefetch_map(&a_map);
      int stage = 0;
      uint32_t round = 1;  // the first time the stages are free
      for (int tile = cluster; tile < tiles; tile += clusters) {
        for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
          barrier_wait(&shared.empty[stage], round);
          barrier_expect(&shared.full[stage], S::kStageBytes);
          load_box(shared.b[stage], &b_map, &shared.full[stage], chunk * kChunk, tile * kColumns, kEvictFirst);
          load_box(shared.a[stage], &a_map, &shared.full[stage], chunk * kChunk, 0, kEvictLast);
          if (++stage == S::kStages) {
            stage = 0;
            round ^= 1;
          }
        }
      }
    }
  } else {
    using A = Atom<Element, ROWS>;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const bool first_of_group = threadIdx.x % 128 == 0;
    typename A::Register d[ROWS / 2];
    const int pieces = last_chunk - first_chunk;
    int before = 0;  // pieces of earlier tiles
    int turn = 0;
    for (int tile = cluster; tile < tiles; tile += clusters, ++turn, before += pieces) {
      int waiting = -1;  // a stage whose products may still be under way
#pragma unroll
      for (int i = 0; i < ROWS / 2; ++i) d[i] = 0;
      for (int piece = group; piece < pieces; piece += kGroups) {
        const int stage = (before + piece) % S::kStages;
        barrier_wait(&shared.full[stage], (before + piece) / S::kStages % 2);
        cute::warpgroup_arrive();
        const uint64_t of_b = matrix_descriptor(shared.b[stage]), of_a = matrix_descriptor(shared.a[stage]);
#pragma unroll
        for (int i = 0; i < kChunk / 32; ++i) {
          wgmma<typename A::Type>(of_b + 2 * i, of_a + 2 * i, d, piece >= kGroups || i > 0,
                                  std::make_index_sequence<ROWS / 2>{});
        }
        cute::warpgroup_commit_batch();
        cute::warpgroup_wait<1>();
        if (waiting >= 0 && first_of_group) barrier_arrive(&shared.empty[waiting]);
        waiting = stage;
      }
      cute::warpgroup_wait<0>();
      if (waiting >= 0 && first_of_group) barrier_arrive(&shared.empty[waiting]);

      // This block's sums, transposed back, once those of the tile before last have been read.
      if (turn >= 2) barrier_wait(&shared.read[turn % 2], turn / 2 % 2 ^ 1);
      auto& sums = shared.sums[turn % 2];
#pragma unroll
      for (int i = 0; i < ROWS / 2; ++i) {
        const int column = 16 * warp + lane / 4 + (i % 4 / 2) * 8;
        const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
        Acc value;
        __builtin_memcpy(&value, &d[i], 4);
        sums[group][row][column] = value;
      }
      asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
      if (threadIdx.x < kCluster) barrier_arrive_remote(&shared.summed[turn % 2], threadIdx.x);
    }
  }
  // Nobody leaves while another block may still read its sums.
  __syncwarp();
  cluster_sync();
}

template <typename Element, typename Out, int ROWS>
void launch(const ScaledMM& p) {
  using S = Shared<typename Element::Acc, ROWS>;
  const char* op = "cutlass_scaled_mm";
  const auto kernel = decode_kernel<Element, Out, ROWS>;
  constexpr int kBytes = sizeof(S) + 1024;
  static_assert(kBytes <= 227 * 1024);

  cudaLaunchConfig_t config{};
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = p.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kCluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;

  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), kBytes, p.device, allowed);
  static thread_local int most = 0;  // clusters that fit on a device of sm_90; all of a kind here
  if (most == 0) {
    config.gridDim = dim3(kCluster);
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&most, kernel, &config);
    QCORE_CHECK(error == cudaSuccess && most > 0, op, ": ", cudaGetErrorString(error));
  }
  const int64_t tiles = ceil_div(p.n, kColumns);
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(tiles, most) * kCluster));
  const CUtensorMap b_map = byte_matrix_map(op, p.b, p.n, p.k, p.b_stride, kColumns);
  const CUtensorMap a_map = byte_matrix_map(op, p.a, p.m, p.k, p.a_stride, ROWS);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, b_map, a_map, p.m, p.n, p.k, ScaledEnd<Out>(p));
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

template <typename Element, typename Out>
void launch_for_rows(const ScaledMM& p) {
  if (p.m <= 8) return launch<Element, Out, 8>(p);
  if (p.m <= 16) return launch<Element, Out, 16>(p);
  if (p.m <= 32) return launch<Element, Out, 32>(p);
  launch<Element, Out, 64>(p);
}

}  // namespace

void scaled_mm_sm90_decode(const ScaledMM& p) {
  with_out_type(p.out_bf16, [&](auto zero) {
    using Out = decltype(zero);
    p.is_fp8 ? launch_for_rows<E4m3, Out>(p) : launch_for_rows<Int8, Out>(p);
  });
}

}  // namespace qcore_cuda
