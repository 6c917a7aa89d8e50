// static_scaled_int8_quant and dynamic_scaled_int8_quant: activations to int8.
//
// Scales multiply: x = (q - azp) * scale. Dynamic: a scale for each row, amax / 127, or with a zero
// point (high - low) / 255. A row of zeros has scale 1; one with an infinity or NaN has scale NaN.

#include "row_quant.cuh"

namespace qcore_cuda {
namespace {

struct Symmetric {
  using Reduction = MaxBits;
  using Code = int8_t;
  struct Params {
    float* scale;
    int32_t* azp;
  };
  struct Scale {
    Divisor divide;
  };
  static __device__ Scale scale(const Params& p, uint32_t bits, int64_t row, bool write) {
    float s = __uint_as_float(bits) / 127.0f;
    if (s == 0.0f) s = 1.0f;
    const bool finite = isfinite(s);
    if (write) p.scale[row] = finite ? s : __int_as_float(0x7fc00000);
    return {finite ? Divisor(s) : Divisor::of_any(1.0f)};
  }
  static __device__ int8_t encode(float v, const Scale& c) { return to_int8(c.divide(v), 0, -127); }
  static __device__ uint32_t encode4(const float (&v)[4], const Scale& c) {
    const float q[4] = {c.divide(v[0]), c.divide(v[1]), c.divide(v[2]), c.divide(v[3])};
    return to_int8x4(q, 0, -127);
  }
};

struct Asymmetric {
  using Reduction = Range;
  using Code = int8_t;
  using Params = Symmetric::Params;
  struct Scale {
    Divisor divide;
    int azp;
  };
  static __device__ Scale scale(const Params& p, float2 range, int64_t row, bool write) {
    float s = (range.y - range.x) / 255.0f;
    if (s == 0.0f) s = 1.0f;
    const bool finite = isfinite(s);
    const float shown = finite ? s : __int_as_float(0x7fc00000);
    const int zero = finite ? -128 - __float2int_rn(range.x / s) : -128;
    const int azp = min(127, max(-128, zero));
    if (write) {
      p.scale[row] = shown;
      p.azp[row] = azp;
    }
    return {finite ? Divisor(s) : Divisor::of_any(1.0f), azp};
  }
  static __device__ int8_t encode(float v, const Scale& c) {
    return to_int8(c.divide(v), c.azp, -128);
  }
  static __device__ uint32_t encode4(const float (&v)[4], const Scale& c) {
    const float q[4] = {c.divide(v[0]), c.divide(v[1]), c.divide(v[2]), c.divide(v[3])};
    return to_int8x4(q, c.azp, -128);
  }
};

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
  const StaticScale known{static_cast<const float*>(scale.data_ptr()),
                          azp ? static_cast<const int32_t*>(azp->data_ptr()) : nullptr};
  with_float_type(op, "input", input.scalar_type(), [&](auto zero) {
    elementwise_quant<decltype(zero)>(x, static_cast<int8_t*>(out.data_ptr()), known,
                                      device_facts(input.get_device_index()).sm_count, launch.stream());
  });
  check_launch(op);
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
  const Symmetric::Params params{static_cast<float*>(scale.data_ptr()),
                                 azp ? static_cast<int32_t*>(azp->data_ptr()) : nullptr};
  with_float_type(op, "input", input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    auto* codes = static_cast<int8_t*>(out.data_ptr());
    if (azp) {
      row_quant<T, Asymmetric>(x, codes, params, launch.stream());
    } else {
      row_quant<T, Symmetric>(x, codes, params, launch.stream());
    }
  });
  check_launch(op);
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("static_scaled_int8_quant(Tensor(a!) out, Tensor input, Tensor scale, Tensor? azp=None) -> ()");
  m.def("dynamic_scaled_int8_quant(Tensor(a!) out, Tensor input, Tensor(b!) scale, Tensor(c!)? azp=None) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("static_scaled_int8_quant", TORCH_BOX(&qcore_cuda::static_scaled_int8_quant));
  m.impl("dynamic_scaled_int8_quant", TORCH_BOX(&qcore_cuda::dynamic_scaled_int8_quant));
}
