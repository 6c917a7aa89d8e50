// static_scaled_int8_quant and dynamic_scaled_int8_quant: activations to int8.
//
// Scales multiply: x = (q - azp) * scale. Dynamic: a scale for each row, amax / 127, or with a zero
// point (high - low) / 255. A row of zeros has scale 1; one with an infinity or NaN has scale NaN.

#include "quantize_rows.h"
#include "row_codecs.cuh"
#include "row_quant.cuh"

namespace qcore_cuda {
namespace {

struct StaticScale {
  const float* scale;
  const int32_t* azp;

  struct Encode {
    DivisorOfAny divide;
    int azp, lowest;
    __device__ int8_t operator()(float v) const { return to_int8(divide(v), azp, lowest); }
    __device__ uint32_t four(const float (&v)[4]) const {
      const float q[4] = {divide(v[0]), divide(v[1]), divide(v[2]), divide(v[3])};
      return to_int8x4(q, azp, lowest);
    }
  };
  __device__ Encode prepare() const { return {DivisorOfAny(*scale), azp ? *azp : 0, azp ? -128 : -127}; }
};

void check_out(const char* op, const Tensor& out, const Tensor& input) {
  check_same_device(op, "out", out, input);
  check_dtype(op, "out", out, {ScalarType::Char});
  check_contiguous(op, "out", out);
  QCORE_CHECK(out.numel() == input.numel(), op, ": out has shape ", shape_of(out), "; input has ",
                  shape_of(input));
}

void static_scaled_int8_quant(const Tensor& out, const Tensor& input, const Tensor& scale,
                              const std::optional<Tensor>& azp) {
  const char* op = "static_scaled_int8_quant";
  const Rows x = as_rows(op, "input", input);
  check_out(op, out, input);
  check_same_device(op, "scale", scale, input);
  check_dtype(op, "scale", scale, {ScalarType::Float});
  QCORE_CHECK(scale.numel() == 1, op, ": scale has shape ", shape_of(scale), "; it must have one element");
  if (azp) {
    check_same_device(op, "azp", *azp, input);
    check_dtype(op, "azp", *azp, {ScalarType::Int});
    QCORE_CHECK(azp->numel() == 1, op, ": azp has shape ", shape_of(*azp), "; it must have one element");
  }
  if (x.m * x.k == 0) return;
  const Launch launch(input);
  int8_by_scale(where(op, input, launch), x, out.data_ptr(), static_cast<const float*>(scale.data_ptr()),
                azp ? static_cast<const int32_t*>(azp->data_ptr()) : nullptr);
}

void dynamic_scaled_int8_quant(const Tensor& out, const Tensor& input, const Tensor& scale,
                               const std::optional<Tensor>& azp) {
  const char* op = "dynamic_scaled_int8_quant";
  const Rows x = as_rows(op, "input", input);
  check_out(op, out, input);
  check_same_device(op, "scale", scale, input);
  check_dtype(op, "scale", scale, {ScalarType::Float});
  check_contiguous(op, "scale", scale);
  QCORE_CHECK(scale.numel() == x.m, op, ": scale has shape ", shape_of(scale), "; it must have ", x.m,
                  " elements, one a row");
  if (azp) {
    check_same_device(op, "azp", *azp, input);
    check_dtype(op, "azp", *azp, {ScalarType::Int});
    check_contiguous(op, "azp", *azp);
    QCORE_CHECK(azp->numel() == x.m, op, ": azp has shape ", shape_of(*azp), "; it must have ", x.m,
                    " elements, one a row");
  }
  if (x.m == 0) return;
  const Launch launch(input);
  int8_by_row(where(op, input, launch), x, out.data_ptr(), static_cast<float*>(scale.data_ptr()),
              azp ? static_cast<int32_t*>(azp->data_ptr()) : nullptr);
}

Tensor new_static(const Tensor& input, const Tensor& scale, const std::optional<Tensor>& azp) {
  const Tensor out = new_like(input, input.dim(), ScalarType::Char);
  static_scaled_int8_quant(out, input, scale, azp);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> new_dynamic(const Tensor& input, bool symmetric) {
  const Tensor out = new_like(input, input.dim(), ScalarType::Char);
  const Tensor scale = new_column(input, ScalarType::Float);
  if (symmetric) {
    dynamic_scaled_int8_quant(out, input, scale, std::nullopt);
    return {out, scale, new_tensor(input, {0}, ScalarType::Int)};
  }
  const Tensor azp = new_column(input, ScalarType::Int);
  dynamic_scaled_int8_quant(out, input, scale, azp);
  return {out, scale, azp};
}

}  // namespace

void int8_by_scale(const Where& at, const Rows& x, void* codes, const float* scale, const int32_t* azp) {
  if (x.m * x.k == 0) return;
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    elementwise_quant<decltype(zero)>(at, x, static_cast<int8_t*>(codes), StaticScale{scale, azp});
  });
  check_launch(at.op);
}

void int8_by_row(const Where& at, const Rows& x, void* codes, float* scale, int32_t* azp) {
  if (x.m == 0) return;
  const Int8Row::Params params{scale, azp};
  with_float_type(at.op, "the input", x.tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (azp) {
      row_quant<T, Int8RowAzp>(at, x, static_cast<int8_t*>(codes), params);
    } else {
      row_quant<T, Int8Row>(at, x, static_cast<int8_t*>(codes), params);
    }
  });
  check_launch(at.op);
}

}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("static_scaled_int8_quant(Tensor(a!) out, Tensor input, Tensor scale, Tensor? azp=None) -> ()");
  m.def("dynamic_scaled_int8_quant(Tensor(a!) out, Tensor input, Tensor(b!) scale, Tensor(c!)? azp=None) -> ()");
  // The same, making what they return; without a zero point the last of the three is empty.
  m.def("static_scaled_int8_quant.new(Tensor input, Tensor scale, Tensor? azp=None) -> Tensor");
  m.def("dynamic_scaled_int8_quant.new(Tensor input, bool symmetric) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("static_scaled_int8_quant", TORCH_BOX(&qcore_cuda::static_scaled_int8_quant));
  m.impl("dynamic_scaled_int8_quant", TORCH_BOX(&qcore_cuda::dynamic_scaled_int8_quant));
  m.impl("static_scaled_int8_quant.new", TORCH_BOX(&qcore_cuda::new_static));
  m.impl("dynamic_scaled_int8_quant.new", TORCH_BOX(&qcore_cuda::new_dynamic));
}
