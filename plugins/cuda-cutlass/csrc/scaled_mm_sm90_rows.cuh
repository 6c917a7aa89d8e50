// Where scaled_mm_sm90_columns.cuh's kernel has its activations from if nobody has made codes of them before.
#pragma once

#include <type_traits>

#include "row_codecs.cuh"
#include "scaled_mm_sm90_columns.cuh"

namespace qcore_cuda {
namespace {

// Rows of 16-bit floats, at most kMostRows, that every block makes codes of.
template <typename Float, class Codec>
struct QuantizedHere {
  static constexpr bool kHere = true;
  static constexpr int kMostRows = 8;
  static constexpr int kVec = 16 / sizeof(Float), kVecs = 8;  // elements of a vector; vectors that a thread has

  const Float* x;
  int64_t stride;  // elements
  int k;           // a multiple of kVec; p.k may be more
  typename Codec::Params params;  // but where scales and zero points go: to Room

  // Threads that have a row; a power of two of warps.
  static __host__ __device__ int threads_of_row(int m) { return kConsumers / (m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : 8); }
  static bool fits(int m, int64_t k) {
    return m <= kMostRows && k > 0 && k % kVec == 0 && k <= kVec * kVecs * threads_of_row(m);
  }

  // For scales, zero points and what warps tell each other.
  struct Room {
    float scale[kMostRows];
    int32_t azp[kMostRows];
    typename Codec::Reduction::Value of_warp[kConsumers / 32];
  };
  // Makes codes of all rows, in so many pieces, which lie as the copy engine would have put them.
  __device__ __forceinline__ void quantize(int m, int pieces, uint8_t* codes, Room* room) const {
    using Reduction = typename Codec::Reduction;
    const int threads = threads_of_row(m), row = threadIdx.x / threads, at = threadIdx.x % threads;
    const int vecs = row < m ? k / kVec : 0;
    const auto* const source = reinterpret_cast<const Vec<Float, kVec>*>(x + row * stride);
    Vec<Float, kVec> held[kVecs] = {};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (at + i * threads < vecs) held[i] = source[at + i * threads];
    }
    auto reduced = Reduction::warp(reduce_vecs<Reduction>(held));
    if (threadIdx.x % 32 == 0) room->of_warp[threadIdx.x / 32] = reduced;
    sync_consumers();
    const int warps = threads / 32, lane = threadIdx.x % 32;
    reduced = Reduction::warp(lane < warps ? room->of_warp[threadIdx.x / threads * warps + lane] : Reduction::identity());
    if (row >= m) return;
    auto told = params;
    told.scale = room->scale;
    if constexpr (std::is_same_v<typename Codec::Params, Int8Row::Params>) told.azp = room->azp;
    const auto scale = Codec::scale(told, reduced, row, at == 0);
    const auto store = [&](int vec, const Vec<typename Codec::Code, kVec>& eight) {
      const int piece = vec / (kPiece / kVec), byte = vec % (kPiece / kVec) * kVec;
      const int swizzled = byte ^ row * 16;
      *reinterpret_cast<Vec<typename Codec::Code, kVec>*>(codes + (piece * kMostRows + row) * kPiece + swizzled) = eight;
    };
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (at + i * threads >= vecs) continue;
      store(at + i * threads, encode_vec<typename Codec::Code>(
                                  held[i], [&](float f) { return Codec::encode(f, scale); },
                                  [&](const float(&f)[4]) { return Codec::encode4(f, scale); }));
    }
    for (int vec = vecs + at; vec < pieces * (kPiece / kVec); vec += threads) store(vec, {});
    // The tensor cores read what is written here.
    store_before_copies();
  }
  // With what was found out about the rows.
  __device__ __forceinline__ void tell(ScaledMM& p, const Room* room) const {
    p.a_scale = room->scale;
    p.a_per_token = true;
    if (p.azp_adj) p.azp = room->azp;
    p.azp_per_token = true;
  }
};

}  // namespace
}  // namespace qcore_cuda
