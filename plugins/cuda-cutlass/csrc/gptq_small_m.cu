// The kernel for few rows, over GPTQ's layouts.

#include "gptq.cuh"

namespace qcore_cuda {

bool fits_small_m(const GptqWeight& w) {
  return !w.g_idx && (w.group_size >= w.k || w.group_size % kBlockK == 0) && w.n % 8 == 0 && w.k % 4 == 0;
}

Tensor small_m_gptq(const char* op, const Tensor& x, const GptqWeight& weight, const Tensor* bias, int64_t columns,
                    bool out_float, Division wish, const Launch& launch) {
  const Tensor out = new_tensor(x, shape_with_last(x, columns),
                                              out_float ? ScalarType::Float : dtype_of(x));
  const Rows rows = ready_rows(op, "a", x, weight.perm, weight.k, launch.stream());
  if (rows.m * columns == 0) return out;
  const Tensor words = aligned(weight.words), scales = aligned(weight.scales);
  SmallMParams p = {};
  p.a = rows.data();
  p.a_stride = rows.stride;
  p.m = static_cast<int>(rows.m);
  p.k = static_cast<int>(rows.k);
  p.w = static_cast<const uint32_t*>(words.data_ptr());
  p.w_stride = weight.n;
  p.w_rows = static_cast<int>(words.size(0));
  p.scales = scales.data_ptr();
  p.scale_type = scale_type_of(scales);
  p.zeros = weight.zeros;
  p.blocks = static_cast<int>(ceil_div(weight.k, kBlockK));
  p.group_blocks = weight.group_size >= weight.k ? p.blocks : static_cast<int>(weight.group_size / kBlockK);
  p.bias = bias ? bias->data_ptr() : nullptr;
  p.bias_float = bias && dtype_of(*bias) == ScalarType::Float;
  p.out = out.data_ptr();
  p.out_float = out_float;
  p.n = static_cast<int>(weight.n);
  p.n_out = static_cast<int>(columns);
  p.early = in_place(words, weight.words) && in_place(scales, weight.scales);
  const auto run = [&](auto layout) {
    small_m<decltype(layout)>(op, p, wish, dtype_of(x), x.get_device_index(), launch.stream());
  };
  if (weight.floats) {
    if (weight.scaled || p.group_blocks < p.blocks) {
      p.column_scales = weight.column_scales;
    } else if (weight.column_scales) {  // float32, one group: what this kernel has room for as it is
      p.scales = weight.column_scales;
      p.scale_type = ScaleType::kFloat;
    }
    if (weight.scaled) run(Gptq<NvFp4, true>{});
    else if (weight.bits == 8) run(Gptq<E4M3, false>{});
    else small_m_of<Gptq<E2M1, true>, __nv_bfloat16>(op, p, wish, x.get_device_index(), launch.stream());
    return out;
  }
  switch (weight.bits * 2 + (weight.shuffled && weight.bits != 3 && weight.bits != 8)) {
    case 4: run(Gptq<Integer<2>, false>{}); break;
    case 5: run(Gptq<Integer<2>, true>{}); break;
    case 6: run(Gptq<Integer<3>, false>{}); break;
    case 8: run(Gptq<Integer<4>, false>{}); break;
    case 9: run(Gptq<Integer<4>, true>{}); break;
    case 16: run(Gptq<Integer<8>, false>{}); break;
    default: fail(op, ": no kernel for ", weight.bits, " bits");
  }
  return out;
}

}  // namespace qcore_cuda
