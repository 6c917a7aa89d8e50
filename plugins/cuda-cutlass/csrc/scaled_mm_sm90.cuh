// SM90: CUTLASS's warp-specialized kernels with TMA, and an epilogue for scales, zero points and bias.
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "scaled_mm.h"

namespace qcore_cuda::sm90 {

using namespace cute;  // CUTLASS writes shapes with it: Shape<_128, _128, _128>
namespace fusion = cutlass::epilogue::fusion;

// What differs between 8-bit floats and integers.
template <typename Element>
struct Numbers;
template <>
struct Numbers<cutlass::float_e4m3_t> {
  using Accumulator = float;
};
template <>
struct Numbers<int8_t> {
  using Accumulator = int32_t;
};

// The products of 8-bit floats are added in the tensor core's own accumulators, which keep 13 bits
// below the first of the largest summand. `promoted` schedules add those sums in float32 after every
// 128 products.
template <typename Element>
struct Schedule {
  static constexpr bool kFp8 = std::is_same_v<Element, cutlass::float_e4m3_t>;
  using Mainlooppingpong =
      std::conditional_t<kFp8, cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum,
                         cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
  using Mainloopcooperative =
      std::conditional_t<kFp8, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum,
                         cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Mainlooppingpong_promoted = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Mainloopcooperative_promoted = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epiloguepingpong = cutlass::epilogue::TmaWarpSpecialized;
  using Epiloguecooperative = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Epiloguepingpong_promoted = Epiloguepingpong;
  using Epiloguecooperative_promoted = Epiloguecooperative;
};

// A vector along M (N), or one number for all rows (columns): decided by the stride at run time.
template <typename T, typename Tile>
using Column = fusion::Sm90ColBroadcast<0, Tile, T, T, Stride<bool, _0, int64_t>>;
template <typename T, typename Tile>
using Row = fusion::Sm90RowBroadcast<0, Tile, T, T, Stride<_0, bool, int64_t>>;

// What a token has, and what a channel has: along M and N, or, where the product is made transposed, along N and M.
template <typename T, typename Tile, bool SWAPPED>
using OfToken = std::conditional_t<SWAPPED, Row<T, Tile>, Column<T, Tile>>;
template <typename T, typename Tile, bool SWAPPED>
using OfChannel = std::conditional_t<SWAPPED, Column<T, Tile>, Row<T, Tile>>;
template <typename Vector, typename T>
typename Vector::Arguments column_of(const T* values, T otherwise, bool each) {
  return {values, otherwise, {each, _0{}, 0}};
}
template <typename Vector, typename T>
typename Vector::Arguments row_of(const T* values, T otherwise, bool each) {
  return {values, otherwise, {_0{}, each, 0}};
}
template <bool SWAPPED, typename Tile, typename T>
auto of_token(const T* values, T otherwise, bool each) {
  if constexpr (SWAPPED) return row_of<Row<T, Tile>>(values, otherwise, each);
  else return column_of<Column<T, Tile>>(values, otherwise, each);
}
template <bool SWAPPED, typename Tile, typename T>
auto of_channel(const T* values, T otherwise, bool each) {
  return of_token<!SWAPPED, Tile>(values, otherwise, each);
}
template <typename Out, typename Tile, bool SWAPPED>
using BiasOfChannel =
    std::conditional_t<SWAPPED, fusion::Sm90ColBroadcast<0, Tile, Out, float, Stride<_1, _0, _0>>,
                       fusion::Sm90RowBroadcast<0, Tile, Out, float, Stride<_0, _1, _0>>>;

template <typename Element, typename Out, typename Tile, bool SWAPPED>
struct Epilogue {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Acc = fusion::Sm90AccFetch;
  using Product = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>,
                                  OfToken<float, Tile, SWAPPED>, Acc>;
  using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Out, float, kRound>,
                               OfChannel<float, Tile, SWAPPED>, Product, BiasOfChannel<Out, Tile, SWAPPED>>;
  static typename Tree::Arguments arguments(const ScaledMM& p) {
    return {of_channel<SWAPPED, Tile>(p.b_scale, 0.0f, p.b_per_channel),
            {of_token<SWAPPED, Tile>(p.a_scale, 0.0f, p.a_per_token), {}, {}},
            {static_cast<const Out*>(p.bias), Out(0), {}},
            {}};
  }
};

// Integers carry zero points: acc - azp * azp_adj, exact in 32 bits. Without them both are 0.
template <typename Out, typename Tile, bool SWAPPED>
struct Epilogue<int8_t, Out, Tile, SWAPPED> {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Acc = fusion::Sm90AccFetch;
  using Shift = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, int32_t, int32_t, kRound>,
                                OfToken<int32_t, Tile, SWAPPED>, OfChannel<int32_t, Tile, SWAPPED>>;
  using Shifted = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::minus, float, int32_t, kRound>, Acc, Shift>;
  using Product = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>,
                                  OfToken<float, Tile, SWAPPED>, Shifted>;
  using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Out, float, kRound>,
                               OfChannel<float, Tile, SWAPPED>, Product, BiasOfChannel<Out, Tile, SWAPPED>>;
  static typename Tree::Arguments arguments(const ScaledMM& p) {
    // Per tensor, azp may be multiplied into azp_adj already; then each row's is 1.
    const int32_t otherwise = p.azp_adj ? 1 : 0;
    typename Shift::Arguments shift{of_token<SWAPPED, Tile>(p.azp, otherwise, p.azp_per_token),
                                    of_channel<SWAPPED, Tile>(p.azp_adj, 0, true),
                                    {}};
    return {of_channel<SWAPPED, Tile>(p.b_scale, 0.0f, p.b_per_channel),
            {of_token<SWAPPED, Tile>(p.a_scale, 0.0f, p.a_per_token), {{}, shift, {}}, {}},
            {static_cast<const Out*>(p.bias), Out(0), {}},
            {}};
  }
};

// SWAPPED: out^T = b^T a^T, with the weight's columns along the tile's M: of few rows less of a tile is empty.
template <typename Element, typename Out, typename Tile, typename Cluster, typename MainloopSchedule,
          typename EpilogueSchedule, bool SWAPPED>
struct Gemm {
  using Accumulator = typename Numbers<Element>::Accumulator;
  using Evt = Epilogue<Element, Out, Tile, SWAPPED>;
  using OutLayout = std::conditional_t<SWAPPED, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
  static constexpr int kAlignment = 16;
  static constexpr int kOutAlignment = 8;

  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, Accumulator, float, void, OutLayout, kOutAlignment, Out,
      OutLayout, kOutAlignment, EpilogueSchedule,
      typename Evt::Tree>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, kAlignment, Element,
      cutlass::layout::ColumnMajor, kAlignment, Accumulator, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop,
                                                      CollectiveEpilogue>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static void run(const ScaledMM& p) {
    using InStride = Stride<int64_t, _1, int64_t>;
    InStride left_stride{p.a_stride, _1{}, 0}, right_stride{p.b_stride, _1{}, 0};
    typename Kernel::CollectiveEpilogue::StrideD out_stride;
    const void *left = p.a, *right = p.b;
    int m = p.m, n = p.n;
    if constexpr (SWAPPED) {
      std::swap(left, right);
      std::swap(left_stride, right_stride);
      std::swap(m, n);
      get<1>(out_stride) = p.out_stride;
    } else {
      get<0>(out_stride) = p.out_stride;
    }
    get<2>(out_stride) = 0;
    typename Kernel::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, p.k, 1},
        {static_cast<const Element*>(left), left_stride, static_cast<const Element*>(right), right_stride},
        {Evt::arguments(p), nullptr, out_stride, static_cast<Out*>(p.out), out_stride}};
    arguments.hw_info.sm_count = p.sm_count;
    const char* op = "cutlass_scaled_mm";
    QCORE_CHECK(Device::get_workspace_size(arguments) == 0, op, ": this kernel should need no workspace");
    // What the adapter's `initialize` does, with the shared memory asked for once rather than each time.
    static std::atomic<uint64_t> allowed{0};
    allow_shared(op, reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>), Kernel::SharedStorageSize,
                 p.device, allowed);
    typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
    const cutlass::Status status = Device::run(params, p.stream, nullptr, p.early_launch);
    QCORE_CHECK(status == cutlass::Status::kSuccess, op, ": CUTLASS says ", cutlassGetStatusString(status),
                    " for M, N, K = ", p.m, ", ", p.n, ", ", p.k);
  }
};

}  // namespace qcore_cuda::sm90

// Defines sm90_NAME_fp8_bf16 and its like: one in each file that CMake makes.
#define QCORE_SM90_INSTANCE(NAME, TYPES, ELEMENT, OUT, M, N, K, CLUSTER_M, CLUSTER_N, SCHEDULE, SWAPPED)     \
  namespace qcore_cuda {                                                                                    \
  void sm90_##NAME##_##TYPES(const ScaledMM& p) {                                                           \
    using namespace sm90;                                                                                   \
    Gemm<ELEMENT, OUT, Shape<Int<M>, Int<N>, Int<K>>, Shape<Int<CLUSTER_M>, Int<CLUSTER_N>, _1>,            \
         Schedule<ELEMENT>::Mainloop##SCHEDULE, Schedule<ELEMENT>::Epilogue##SCHEDULE, SWAPPED>::run(p);    \
  }                                                                                                         \
  }
