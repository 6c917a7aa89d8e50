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

template <typename Element, typename Out, typename Tile>
struct Epilogue {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Acc = fusion::Sm90AccFetch;
  using Product = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>,
                                  Column<float, Tile>, Acc>;
  using Bias = fusion::Sm90RowBroadcast<0, Tile, Out, float, Stride<_0, _1, _0>>;
  using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Out, float, kRound>,
                               Row<float, Tile>, Product, Bias>;
  static typename Tree::Arguments arguments(const ScaledMM& p) {
    return {{p.b_scale, 0.0f, {_0{}, p.b_per_channel, 0}},
            {{p.a_scale, 0.0f, {p.a_per_token, _0{}, 0}}, {}, {}},
            {static_cast<const Out*>(p.bias), Out(0), {}},
            {}};
  }
};

// Integers carry zero points: acc - azp * azp_adj, exact in 32 bits. Without them both are 0.
template <typename Out, typename Tile>
struct Epilogue<int8_t, Out, Tile> {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using Acc = fusion::Sm90AccFetch;
  using Shift = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, int32_t, int32_t, kRound>,
                                Column<int32_t, Tile>, Row<int32_t, Tile>>;
  using Shifted = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::minus, float, int32_t, kRound>, Acc, Shift>;
  using Product = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>,
                                  Column<float, Tile>, Shifted>;
  using Bias = fusion::Sm90RowBroadcast<0, Tile, Out, float, Stride<_0, _1, _0>>;
  using Tree = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Out, float, kRound>,
                               Row<float, Tile>, Product, Bias>;
  static typename Tree::Arguments arguments(const ScaledMM& p) {
    // Per tensor, azp may be multiplied into azp_adj already; then each row's is 1.
    const int32_t otherwise = p.azp_adj ? 1 : 0;
    typename Shift::Arguments shift{{p.azp, otherwise, {p.azp_per_token, _0{}, 0}},
                                    {p.azp_adj, 0, {_0{}, true, 0}},
                                    {}};
    return {{p.b_scale, 0.0f, {_0{}, p.b_per_channel, 0}},
            {{p.a_scale, 0.0f, {p.a_per_token, _0{}, 0}}, {{}, shift, {}}, {}},
            {static_cast<const Out*>(p.bias), Out(0), {}},
            {}};
  }
};

template <typename Element, typename Out, typename Tile, typename Cluster, typename MainloopSchedule,
          typename EpilogueSchedule, typename Scheduler = void>
struct Gemm {
  using Accumulator = typename Numbers<Element>::Accumulator;
  using Evt = Epilogue<Element, Out, Tile>;
  static constexpr int kAlignment = 16;
  static constexpr int kOutAlignment = 8;

  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, Accumulator, float, void, cutlass::layout::RowMajor,
      kOutAlignment, Out, cutlass::layout::RowMajor, kOutAlignment, EpilogueSchedule,
      typename Evt::Tree>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, kAlignment, Element,
      cutlass::layout::ColumnMajor, kAlignment, Accumulator, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop,
                                                      CollectiveEpilogue, Scheduler>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static void run(const ScaledMM& p) {
    using StrideA = Stride<int64_t, _1, int64_t>;
    const StrideA a_stride{p.a_stride, _1{}, 0}, b_stride{p.b_stride, _1{}, 0}, out_stride{p.out_stride, _1{}, 0};
    typename Kernel::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.m, p.n, p.k, 1},
        {static_cast<const Element*>(p.a), a_stride, static_cast<const Element*>(p.b), b_stride},
        {Evt::arguments(p), nullptr, out_stride, static_cast<Out*>(p.out), out_stride}};
    arguments.hw_info.sm_count = p.sm_count;
    const char* op = "cutlass_scaled_mm";
    QCORE_CHECK(Device::get_workspace_size(arguments) == 0, op, ": this kernel should need no workspace");
    // What the adapter's `initialize` does, with the shared memory asked for once rather than each time.
    static std::atomic<uint64_t> allowed{0};
    allow_shared(op, reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>), Kernel::SharedStorageSize,
                 p.device, allowed);
    typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
    const cutlass::Status status = Device::run(params, p.stream);
    QCORE_CHECK(status == cutlass::Status::kSuccess, op, ": CUTLASS says ", cutlassGetStatusString(status),
                    " for M, N, K = ", p.m, ", ", p.n, ", ", p.k);
  }
};

}  // namespace qcore_cuda::sm90

// Defines sm90_NAME_fp8_bf16 and its like: one in each file that CMake makes.
#define QCORE_SM90_INSTANCE(NAME, TYPES, ELEMENT, OUT, M, N, K, CLUSTER_M, CLUSTER_N, SCHEDULE)              \
  namespace qcore_cuda {                                                                                    \
  void sm90_##NAME##_##TYPES(const ScaledMM& p) {                                                           \
    using namespace sm90;                                                                                   \
    Gemm<ELEMENT, OUT, Shape<Int<M>, Int<N>, Int<K>>, Shape<Int<CLUSTER_M>, Int<CLUSTER_N>, _1>,            \
         Schedule<ELEMENT>::Mainloop##SCHEDULE, Schedule<ELEMENT>::Epilogue##SCHEDULE>::run(p);             \
  }                                                                                                         \
  }
