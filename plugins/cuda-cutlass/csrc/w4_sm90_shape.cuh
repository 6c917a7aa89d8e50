// What SM90's kernel for many rows (w4_sm90_kernel.cuh) is given, how its tiles lie in shared memory and which it takes.
#pragma once

#include "handed_sums.cuh"
#include "sm90_ptx.cuh"
#include "tile_bands.cuh"
#include "w4_codes.cuh"
#include "w4_sm90_plan.h"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kPieceK = 64;  // inputs: 128 bytes of activations
constexpr int kGroups = 2;   // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kSharedOfProcessor = 227 * 1024;

// Clusters that have no tile of their own help others: with the last stages of their last tiles.
struct Helped {
  int helpers, pairs, stages;  // the first clusters; the last pairs of tiles; stages of these
  Meeting meeting;             // sums that helpers leave: [pairs][2 blocks][kGroups][kFours][128 threads]
};

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
  Helped helped;
};

// All but the addresses and what depends on the tile. `columns` of out.
inline Problem problem_of(int64_t m, int64_t k, int64_t columns, int bits, int64_t group_size, const GptqZeros& zeros,
                          bool scaled) {
  Problem p{};
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(columns);
  p.group_halves = scaled ? 1 : static_cast<int>(group_size >= k ? 4 * ceil_div(k, kPieceK) : group_size / 32);
  p.zero = zeros.constant;
  p.has_zeros = zeros.words != nullptr;
  p.zero_ones = !zeros.add ? 0 : bits == 4 ? 0x11111111u : 0x01010101u;
  return p;
}

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

// TOGETHER: halves of a piece whose weights are made at once.
template <int BITS, int ROWS, int COLUMNS, int TOGETHER>
struct Shape {
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kRegisters = ROWS / 2;
  static constexpr int kOperands = COLUMNS / 64 / kGroups;  // of 64 columns, that a warpgroup has
  static constexpr int kBlocks = ROWS == 64 ? 2 : 1;  // on a processor
  static constexpr bool kHelps = kBlocks == 1 || TOGETHER == 1;  // registers allow clusters to help each other
  static constexpr int kFours = kOperands * kRegisters / 4;  // of a thread's sums
  // A block alone gives registers of its last warpgroup, which needs few, to the others.
  static constexpr int kThreads = kConsumers + (kBlocks == 2 ? 32 : 128);
  static constexpr int kSharedBytes = (kSharedOfProcessor - (kBlocks - 1) * 1024) / kBlocks / 128 * 128;
  // A stage has two pieces where they are small, and half as many copies and barriers.
  static constexpr int kPieces = BITS == 4 && ROWS <= 128 ? 2 : 1;
  static constexpr int kStageK = kPieces * kPieceK, kHalves = 2 * kPieces;
  static constexpr int kTogether = TOGETHER, kPortions = kHalves / TOGETHER;
  static constexpr int kWordRows = kPieceK * BITS / 32;  // of a piece
  static constexpr int kXBytes = ROWS * kPieceK * 2, kWBytes = kWordRows * COLUMNS * 4;
  static constexpr int kZeroWords = COLUMNS * BITS / 32;
  static constexpr int kScaleBytes = COLUMNS * 2, kZeroBytes = COLUMNS;
  static constexpr int kSlotBytes = kScaleBytes + kZeroBytes;
  static constexpr int kStageBytes = kPieces * (kXBytes + kWBytes);  // activations, then words
  static constexpr int kSideBytes = kHalves * kSlotBytes;            // scales, then zero points
  // What is stored together: so many rows of a warpgroup's columns; 8 elements more keep rows apart in banks.
  static constexpr int kChunk = 64 / kOperands, kStoreStride = 64 * kOperands + 8;
  static constexpr int kStoreBytes = kGroups * kChunk * kStoreStride * 2;
  static constexpr int kSumStride = COLUMNS + 4;  // floats
  static constexpr int kBarrierBytes = 256;
  static constexpr int kStages = (kSharedBytes - 1024 - kStoreBytes - kBarrierBytes) / (kStageBytes + kSideBytes);
  static_assert(kStages * 16 <= kBarrierBytes && kStages * kStageBytes >= ROWS * kSumStride * 4);

  // Scales that a stage brings for each column: of the groups that begin or go on in it.
  static __host__ __device__ constexpr int slots(int group_halves) {
    return group_halves % kHalves == 0 ? 1 : group_halves % 2 == 0 ? kPieces : kHalves;
  }
};

template <int TILE>
constexpr many::Tile kTileAt = many::kTiles[TILE];

// Halves of a piece whose weights are made at once, as was faster: one where a product is short and weights are made by
// few instructions, or registers are few; else both.
template <class KIND, int TILE>
constexpr int kTogether =
    kTileAt<TILE>.columns == 256 || (kTileAt<TILE>.rows < 256 && !KIND::kFloat && KIND::kBits == 4) ? 1 : 2;

template <class KIND, int TILE>
using ShapeAt = Shape<KIND::kBits, kTileAt<TILE>.rows, kTileAt<TILE>.columns, kTogether<KIND, TILE>>;

// Calls `use` with a tile's number as a constant.
template <typename Use>
auto with_tile(int tile, Use use) {
  static_assert(many::kTileCount == 4);
  switch (tile) {
    case 0: return use(std::integral_constant<int, 0>{});
    case 1: return use(std::integral_constant<int, 1>{});
    case 2: return use(std::integral_constant<int, 2>{});
    default: return use(std::integral_constant<int, 3>{});
  }
}

// The tiles of a problem, and stages of K, which it is `k` of.
template <class S>
void take_tiles(Problem& p, int64_t k) {
  p.tiles_m = static_cast<int>(ceil_div(p.m, S::kRows));
  p.tiles_n = static_cast<int>(ceil_div(p.n, S::kColumns));
  p.k_stages = static_cast<int>(ceil_div(k, S::kStageK));
}

// A tile of its own, beside that of the other block of a pair; or a part of K of a tile.
struct Place {
  int m, n, first, last;  // tiles; stages of K
};

// A cluster's places, one after another.
template <class S, bool PARTS>
class Walk {
 public:
  __device__ __forceinline__ Walk(const Problem& p, int cluster, int clusters) {
    const int pairs = p.tiles_m * ((p.tiles_n + 1) / 2);
    index_ = cluster, stride_ = clusters, end_ = PARTS ? p.tiles_m * p.tiles_n : pairs;
    if constexpr (kMayHelp) {
      const Helped& helped = p.helped;
      first_helped_ = pairs - helped.pairs;
      index_ -= helped.helpers, stride_ -= helped.helpers;
      helps_ = index_ < 0;  // the first ones: who waits for them began later
      if (helps_) {
        index_ = first_helped_ + helped.pairs * cluster / helped.helpers, stride_ = 1;
        end_ = first_helped_ + helped.pairs * (cluster + 1) / helped.helpers;
      }
    }
  }
  __device__ __forceinline__ bool more() const { return index_ < end_; }
  __device__ __forceinline__ void next() { index_ += stride_; }
  __device__ __forceinline__ bool helps() const { return kMayHelp && helps_; }
  // The number of the pair among those that several clusters work on; below 0: this one alone.
  __device__ __forceinline__ int shared() const { return kMayHelp ? index_ - first_helped_ : -1; }

  __device__ __forceinline__ Place at(const Problem& p, int rank) const {
    if constexpr (PARTS) {
      return {index_ / p.tiles_n, index_ % p.tiles_n, p.k_stages * rank / p.parts, p.k_stages * (rank + 1) / p.parts};
    }
    const TileAt tile = tile_at(index_, p.tiles_m, (p.tiles_n + 1) / 2);
    const int own = p.k_stages - (shared() >= 0 ? p.helped.stages : 0);
    return {tile.m, tile.pair * 2 + rank,  // beyond the end zeros come
            helps() ? own : 0, helps() ? p.k_stages : own};
  }

 private:
  static constexpr bool kMayHelp = S::kHelps && !PARTS;

  int index_, stride_, end_, first_helped_ = 0;
  bool helps_ = false;
};

}  // namespace
}  // namespace qcore_cuda
