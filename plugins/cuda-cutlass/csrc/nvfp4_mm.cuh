// NVFP4 on SM100 and SM120: CUTLASS's block-scaled kernels, which it builds for either from the same words.
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

#include "nvfp4_mm.h"

namespace cutlass::gemm::collective::detail::blockscaled {

// CUTLASS's own is unsigned, and then GCC 12 and nvcc take `Int<SfVectorSize>` for different types where a
// template is built from it. The host's name for a kernel would be none that was compiled; SM120's was so.
template <>
struct blockscaled_type<KernelScheduleAuto, nv_float4_t<float_e2m1_t>> {
  using sf_type = float_ue4m3_t;
  using data_type = float_e2m1_t;
  static constexpr int SfVectorSize = 16;
};

}  // namespace cutlass::gemm::collective::detail::blockscaled

namespace qcore_cuda::nvfp4 {

using namespace cute;  // CUTLASS writes shapes with it: Shape<_128, _128, _128>

template <typename Arch, typename Out, typename Tile>
struct Gemm {
  using Element = cutlass::nv_float4_t<cutlass::float_e2m1_t>;
  using Data = typename Element::DataType;
  using Scale = typename Element::ScaleFactorType;
  using Cluster = Shape<_1, _1, _1>;
  using Operators = cutlass::arch::OpClassBlockScaledTensorOp;
  static constexpr int kAlignment = 32;    // elements: 16 bytes
  static constexpr int kOutAlignment = 8;  // 16 bytes too

  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      Arch, Operators, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      cutlass::layout::RowMajor, kOutAlignment, Out, cutlass::layout::RowMajor, kOutAlignment,
      cutlass::epilogue::collective::EpilogueScheduleAuto,
      cutlass::epilogue::fusion::LinearCombination<Out, float, void, float>>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      Arch, Operators, Element, cutlass::layout::RowMajor, kAlignment, Element, cutlass::layout::ColumnMajor,
      kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      cutlass::gemm::collective::KernelScheduleAuto>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue, void>;
  using Device = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Scales = typename CollectiveMainloop::Sm1xxBlkScaledConfig;

  static void run(const NvFp4MM& p) {
    const char* op = "cutlass_scaled_fp4_mm";
    const auto shape = make_shape(p.m, p.n, p.k, 1);
    typename Kernel::Arguments arguments{};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    arguments.problem_shape = shape;
    auto& in = arguments.mainloop;
    in.ptr_A = static_cast<const Data*>(p.a);
    in.dA = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, make_shape(p.m, p.k, 1));
    in.ptr_B = static_cast<const Data*>(p.b);
    in.dB = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, make_shape(p.n, p.k, 1));
    in.ptr_SFA = static_cast<const Scale*>(p.a_scale);
    in.layout_SFA = Scales::tile_atom_to_shape_SFA(shape);
    in.ptr_SFB = static_cast<const Scale*>(p.b_scale);
    in.layout_SFB = Scales::tile_atom_to_shape_SFB(shape);
    auto& end = arguments.epilogue;
    end.thread.alpha_ptr = p.alpha;
    end.ptr_D = static_cast<Out*>(p.out);
    end.dD = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, make_shape(p.m, p.n, 1));
    arguments.hw_info.device_id = p.device;
    arguments.hw_info.sm_count = p.sm_count;

    cutlass::Status status = Device::can_implement(arguments);
    if (status == cutlass::Status::kSuccess) {
      QCORE_CHECK(Device::get_workspace_size(arguments) == 0, op, ": this kernel should need no workspace");
      // What the adapter's `initialize` does, with the shared memory asked for once rather than each time.
      static std::atomic<uint64_t> allowed{0};
      allow_shared(op, reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>), Kernel::SharedStorageSize,
                   p.device, allowed);
      typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
      status = Device::run(params, p.stream);
    }
    QCORE_CHECK(status == cutlass::Status::kSuccess, op, ": CUTLASS says ", cutlassGetStatusString(status),
                " for M, N, K = ", p.m, ", ", p.n, ", ", p.k);
  }
};

}  // namespace qcore_cuda::nvfp4

// Defines nvfp4_mm_sm100_bf16 and its like.
#define QCORE_NVFP4_INSTANCE(NAME, ARCH, OUT, M, N, K)                                   \
  namespace qcore_cuda {                                                                 \
  void nvfp4_mm_##NAME(const NvFp4MM& p) {                                               \
    using namespace nvfp4;                                                               \
    Gemm<cutlass::arch::ARCH, cutlass::OUT, Shape<Int<M>, Int<N>, Int<K>>>::run(p);      \
  }                                                                                      \
  }
