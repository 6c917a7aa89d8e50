// SM90: a medium number of rows times packed integer weights: the launch of its kernel.

#include "gptq.cuh"
#include "tensor_map.h"
#include "w4_mid_m_kernel.cuh"

namespace qcore_cuda {
namespace {

using mid_m::Plan;
using mid_m::Problem;

struct Maps {
  CUtensorMap x, words, scales, zeros;  // the last two where p.slots.boxes
};

template <typename T, class KIND, int ROW_TILES, bool AFTER>
void launch(const char* op, const Maps& maps, const Problem& p, bool early, int32_t device, cudaStream_t stream) {
  const auto kernel = mid_m::mid_m_kernel<T, KIND, ROW_TILES, AFTER>;
  static std::atomic<uint64_t> allowed{0};
  allow_shared(op, reinterpret_cast<const void*>(kernel), mid_m::kMostShared, device, allowed);
  const dim3 grid(static_cast<unsigned>(ceil_div(p.m, 8 * ROW_TILES)), static_cast<unsigned>(p.plan.split),
                  static_cast<unsigned>(ceil_div(p.n_out, mid_m::kWarpColumns * p.plan.column_warps)));
  const LaunchShape shape{grid, static_cast<unsigned>(32 * (p.plan.column_warps * p.plan.k_warps + 1)),
                          static_cast<size_t>(p.layout.shared_bytes), stream, early, dim3(1, p.plan.split, 1)};
  launch_kernel(op, shape, kernel, maps.x, maps.words, maps.scales, maps.zeros, p);
}

template <typename T, class KIND>
void with_tiles(const char* op, const Maps& maps, const Problem& p, bool early, int32_t device, cudaStream_t stream) {
  const auto run = [&](auto tiles, auto after) {
    launch<T, KIND, decltype(tiles)::value, decltype(after)::value>(op, maps, p, early, device, stream);
  };
  mid_m::with_variant<KIND>(p, run);
}

}  // namespace

// The copy engine takes zero points where they lie.
bool fits_w4_mid_m(const GptqWeight& w, ScalarType type, int32_t device) {
  return fits_w4_sm90(w, type, device) && reinterpret_cast<uintptr_t>(w.zeros.words) % 16 == 0;
}

Tensor w4_mid_m(const char* op, const Tensor& a, const GptqWeight& w, const Tensor* bias, int64_t columns,
                bool out_float, const Launch& at, const Plan& wish) {
  const ScalarType type = out_float ? ScalarType::Float : dtype_of(a);
  const Tensor out = new_tensor(a, shape_with_last(a, columns), type);
  const Rows rows = ready_rows(op, "a", a, w.perm, w.k, at.stream());
  if (rows.m * columns == 0) return out;
  const int32_t device = a.get_device_index();
  const Tensor words = aligned(w.words), scales = aligned(w.scales);
  const bool early = in_place(words, w.words) && in_place(scales, w.scales);
  Problem p = mid_m::problem_of(rows.m, w.k, w.n, columns, w.bits, w.group_size, scales.size(0), w.zeros, wish,
                                device_facts(device).sm_count, w.floats, w.scaled);
  p.scales = scales.data_ptr();
  p.column_scales = w.column_scales;
  p.bias = bias ? bias->data_ptr() : nullptr;
  p.bias_float = bias && dtype_of(*bias) == ScalarType::Float;
  p.out = out.data_ptr();
  p.out_float = out_float;
  const int pieces = p.plan.k_warps * mid_m::stage_pieces(w.bits, p.plan.row_tiles);
  p.x_boxes = p.has_x_boxes(rows.k);
  Maps maps;
  maps.x = p.x_boxes ? byte_boxes_map(op, rows.data(), rows.m, rows.k * 2, rows.stride * 2, p.x_rows, pieces)
                     : byte_matrix_map(op, rows.data(), rows.m, rows.k * 2, rows.stride * 2, p.x_rows);
  maps.words = w.lanes ? lanes_map(op, words.data_ptr(), words.size(0), w.n / 32, p.box_pieces(w.bits), p.plan.column_warps)
                       : byte_boxes_map(op, words.data_ptr(), words.size(0), w.n * 4, w.n * 4, p.word_box_rows(w.bits),
                                        p.plan.column_warps);
  if (p.slots.boxes) {
    const int box = p.plan.column_warps * mid_m::kWarpColumns;
    maps.scales = plain_matrix_map(op, p.scales, p.groups, w.n, 2, p.slots.count, box);
    if (w.zeros.words) {
      maps.zeros = plain_matrix_map(op, w.zeros.words, p.groups, w.zeros.stride, 4, p.slots.count, box * w.bits / 32);
    }
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto with = [&](auto kind) { with_tiles<T, decltype(kind)>(op, maps, p, early, device, at.stream()); };
    if (w.scaled) return with(NvFp4{});
    if (w.floats && w.bits == 8) return with(E4M3{});
    if constexpr (takes_e2m1<T>) {
      if (w.floats) return with(E2M1{});
    }
    if constexpr (std::is_same<T, __nv_bfloat16>::value) {
      if (w.lanes) return with(Lanes{});
      if (p.after || is_centred(w.zeros, w.bits)) return w.bits == 4 ? with(Subnormal<4>{}) : with(Subnormal<8>{});
    }
    w.bits == 4 ? with(Integer<4>{}) : with(Integer<8>{});
  };
  if (dtype_of(a) == ScalarType::Half) run(__half{});
  else run(__nv_bfloat16{});
  return out;
}

}  // namespace qcore_cuda
