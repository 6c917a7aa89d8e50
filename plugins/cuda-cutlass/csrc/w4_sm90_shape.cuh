// What SM90's kernel for many rows (w4_sm90_kernel.cuh) is given, how its tiles lie in shared memory and which it takes.
#pragma once

#include "gptq.cuh"
#include "sm90_ptx.cuh"

namespace qcore_cuda {
namespace {

using namespace sm90;
namespace gmma = cute::SM90::GMMA;

constexpr int kPieceK = 64;  // inputs: 128 bytes of activations
constexpr int kGroups = 2;   // warpgroups that multiply
constexpr int kConsumers = 128 * kGroups;
constexpr int kSharedOfProcessor = 227 * 1024;
constexpr int kBand = 8;  // tiles along M that are worked on together

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

// TOGETHER: halves of a piece whose weights are made at once.
template <int BITS, int ROWS, int COLUMNS, int TOGETHER>
struct Shape {
  static constexpr int kRows = ROWS, kColumns = COLUMNS, kRegisters = ROWS / 2;
  static constexpr int kOperands = COLUMNS / 64 / kGroups;  // of 64 columns, that a warpgroup has
  static constexpr int kBlocks = ROWS == 64 ? 2 : 1;  // on a processor
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

// A tile of its own, beside that of the other block of a pair; or a part of K of a tile.
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

}  // namespace
}  // namespace qcore_cuda
