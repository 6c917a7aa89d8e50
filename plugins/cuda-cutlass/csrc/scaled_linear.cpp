// int8_linear, fp8_linear and fp8_block_linear: a layer in one call. They quantize x, multiply, scale and
// add the bias, with one piece of memory for all that lies between.
//
// x is [..., K]. The weight is [N', K'], rows of bytes, K' a multiple of 16: where K' and N' are larger than
// the layer's, zeros pad them. The result is [..., N].

#include <algorithm>

#include "quantize_rows.h"
#include "scaled_mm.h"

namespace qcore_cuda {
namespace {

using MaybeTensor = std::optional<Tensor>;

template <typename T>
const T* data_of(const MaybeTensor& t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

// Pieces of one allocation, each beginning at a multiple of 256 bytes.
class Workspace {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = size_;
    size_ += ceil_div(bytes, 256) * 256;
    return at;
  }
  void allocate(const Tensor& like) { memory_ = new_tensor(like, {std::max<int64_t>(size_, 1)}, ScalarType::Byte); }
  template <typename T>
  T* at(int64_t place) const {
    return reinterpret_cast<T*>(static_cast<uint8_t*>(memory_.data_ptr()) + place);
  }

 private:
  int64_t size_ = 0;
  Tensor memory_;
};

void check_one(const char* op, const char* name, const MaybeTensor& t, const Tensor& x, ScalarType type) {
  if (!t) return;
  check_same_device(op, name, *t, x);
  check_dtype(op, name, *t, {type});
  QCORE_CHECK(t->numel() == 1, op, ": ", name, " has shape ", shape_of(*t), "; it must have one element");
}

void copy_rows(const char* op, void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t bytes,
               int64_t rows, cudaStream_t stream) {
  if (bytes == 0 || rows == 0) return;
  const cudaError_t error = cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, rows, cudaMemcpyDeviceToDevice, stream);
  QCORE_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

// What the three have in common.
class ScaledLinear {
 public:
  ScaledLinear(const char* op, const Tensor& x, const Tensor& weight, ScalarType codes, const MaybeTensor& bias,
               const Tensor& out)
      : op_(op), x_(as_rows(op, "x", x)), out_(out), launch_(x_.tensor) {
    check_same_device(op, "weight", weight, x);
    if (codes == ScalarType::Char) {
      check_dtype(op, "weight", weight, {codes});
    } else {
      check_dtype(op, "weight", weight, {codes, ScalarType::Byte});
    }
    check_dtype(op, "out", out, {ScalarType::BFloat16, ScalarType::Half});
    constexpr int64_t kMost = 2147483647;
    QCORE_CHECK(weight.dim() == 2 && weight.size(1) % 16 == 0 && weight.size(1) >= x_.k &&
                    weight.size(1) < x_.k + 16 && weight.size(0) >= out_features(),
                op, ": weight has shape ", shape_of(weight), "; with x ", shape_of(x), " and ", out_features(),
                " output features it must be [N, K], of no fewer rows, K rounded up to a multiple of 16");
    QCORE_CHECK(x_.m <= kMost && weight.size(0) <= kMost && weight.size(1) <= kMost, op, ": x has shape ", shape_of(x),
                ", weight ", shape_of(weight), "; no size may exceed ", kMost);
    check_contiguous(op, "weight", weight);
    QCORE_CHECK(reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0, op,
                ": weight does not begin at a multiple of 16 bytes");
    p_.m = static_cast<int>(x_.m);
    p_.n = static_cast<int>(weight.size(0));
    p_.k = static_cast<int>(weight.size(1));
    p_.b = weight.data_ptr();
    p_.a_stride = p_.b_stride = p_.k;
    p_.is_fp8 = codes == ScalarType::Float8_e4m3fn;
    p_.out_bf16 = out.scalar_type() == ScalarType::BFloat16;
    set_device(p_, x.get_device_index());
    if (bias) check_tensor(op, "bias", *bias, x, {out.scalar_type()}, {out_features()});
    p_.bias = bias ? bias->data_ptr() : nullptr;
    p_.out = out.data_ptr();
    p_.out_stride = p_.n;
    p_.stream = launch_.stream();

    codes_ = space_.add(x_.m * p_.k);
    if (padded_k()) narrow_ = space_.add(x_.m * x_.k);
    if (padded_n()) {
      wide_out_ = space_.add(x_.m * p_.n * 2);
      wide_bias_ = space_.add(p_.n * 2);
    }
  }

  const Rows& x() const { return x_; }
  ScaledMM& problem() { return p_; }
  Workspace& space() { return space_; }

  void weight_scale(const Tensor& scale) {
    check_same_device(op_, "weight_scale", scale, x_.tensor);
    check_dtype(op_, "weight_scale", scale, {ScalarType::Float});
    check_contiguous(op_, "weight_scale", scale);
    QCORE_CHECK(scale.numel() == 1 || scale.numel() == p_.n, op_, ": weight_scale has shape ", shape_of(scale),
                "; it must have 1 or ", p_.n, " elements");
    p_.b_scale = static_cast<const float*>(scale.data_ptr());
    p_.b_per_channel = scale.numel() != 1;
  }

  // quantize(at, codes) makes the codes, with rows of x's K; then the product.
  template <typename Quantize>
  void run(const Quantize& quantize) {
    if (is_empty()) return;
    const Where at{op_, device_facts(p_.device), p_.stream};
    auto* codes = space_.at<uint8_t>(codes_);
    if (padded_k()) {
      auto* narrow = space_.at<uint8_t>(narrow_);
      quantize(at, narrow);
      QCORE_CHECK(cudaMemsetAsync(codes, 0, x_.m * p_.k, p_.stream) == cudaSuccess, op_, ": cudaMemsetAsync failed");
      copy_rows(op_, codes, p_.k, narrow, x_.k, x_.k, x_.m, p_.stream);
    } else {
      quantize(at, codes);
    }
    p_.a = codes;
    multiply();
  }

  // In one kernel, if `quantize_and_multiply(p, x)` can do that.
  template <typename Both>
  bool run_at_once(const Both& quantize_and_multiply) {
    return !is_empty() && !padded_n() && quantize_and_multiply(p_, x_);
  }

  // The same of codes that exist.
  void run_on(const void* codes, int64_t stride) {
    if (is_empty()) return;
    p_.a = codes;
    p_.a_stride = stride;
    if (padded_k() || stride % 16 != 0 || reinterpret_cast<uintptr_t>(codes) % 16 != 0) {
      auto* wide = space_.at<uint8_t>(codes_);
      QCORE_CHECK(cudaMemsetAsync(wide, 0, x_.m * p_.k, p_.stream) == cudaSuccess, op_, ": cudaMemsetAsync failed");
      copy_rows(op_, wide, p_.k, codes, stride, x_.k, x_.m, p_.stream);
      p_.a = wide;
      p_.a_stride = p_.k;
    }
    multiply();
  }

 private:
  int64_t out_features() const { return out_.size(out_.dim() - 1); }
  bool is_empty() const { return x_.m == 0 || out_features() == 0; }
  bool padded_k() const { return p_.k != x_.k; }
  bool padded_n() const { return p_.n != out_features(); }

  void multiply() {
    if (!padded_n()) return scaled_mm(op_, p_);
    const int64_t bytes = out_features() * 2;
    p_.out = space_.at<uint8_t>(wide_out_);
    if (p_.bias) {
      auto* wide = space_.at<uint8_t>(wide_bias_);  // what lies behind the layer's is never looked at
      copy_rows(op_, wide, bytes, p_.bias, bytes, bytes, 1, p_.stream);
      p_.bias = wide;
    }
    scaled_mm(op_, p_);
    copy_rows(op_, out_.data_ptr(), bytes, p_.out, p_.n * int64_t{2}, bytes, x_.m, p_.stream);
  }

  const char* op_;
  Rows x_;
  const Tensor& out_;
  Launch launch_;
  ScaledMM p_{};
  Workspace space_;
  int64_t codes_ = 0, narrow_ = 0, wide_out_ = 0, wide_bias_ = 0;
};

void check_float(const char* op, const Tensor& x) {
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
}

void check_out_shape(const char* op, const Tensor& x, const Tensor& out) {
  check_cuda(op, "x", x);
  check_same_device(op, "out", out, x);
  check_contiguous(op, "out", out);
  bool fits = x.dim() >= 1 && out.dim() == x.dim();
  for (int64_t i = 0; fits && i + 1 < x.dim(); ++i) fits = out.size(i) == x.size(i);
  QCORE_CHECK(fits, op, ": out has shape ", shape_of(out), ", x ", shape_of(x), "; they may differ in the last size only");
}

// `type`: none for that of x.
Tensor new_out(const char* op, const Tensor& x, int64_t out_features, std::optional<ScalarType> type) {
  check_cuda(op, "x", x);
  QCORE_CHECK(x.dim() >= 1, op, ": x has no dimension; it must be [..., K]");
  QCORE_CHECK(out_features >= 0, op, ": out_features is ", out_features, "; it cannot be negative");
  return new_tensor(x, shape_with_last(x, out_features), type.value_or(dtype_of(x)));
}

// ---- int8 ---------------------------------------------------------------------------------------

void int8_linear_out(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                     const MaybeTensor& input_scale, const MaybeTensor& input_azp, const MaybeTensor& azp_adj,
                     const Tensor& out) {
  const char* op = "int8_linear";
  check_out_shape(op, x, out);
  check_float(op, x);
  ScaledLinear layer(op, x, weight, ScalarType::Char, bias, out);
  layer.weight_scale(weight_scale);
  ScaledMM& p = layer.problem();
  check_one(op, "input_scale", input_scale, x, ScalarType::Float);
  check_one(op, "input_azp", input_azp, x, ScalarType::Int);
  QCORE_CHECK(input_scale ? input_azp.has_value() == azp_adj.has_value() : !input_azp, op,
              ": a zero point goes with a scale, and with azp_adj");
  if (azp_adj) check_tensor(op, "azp_adj", *azp_adj, x, {ScalarType::Int}, {p.n});
  p.azp_adj = data_of<int32_t>(azp_adj);
  if (input_scale) {
    layer.space().allocate(x);
    p.a_scale = data_of<float>(input_scale);
    p.azp = data_of<int32_t>(input_azp);
    return layer.run([&](const Where& at, void* codes) { int8_by_scale(at, layer.x(), codes, p.a_scale, p.azp); });
  }
#ifdef QCORE_CUDA_SM90A
  if (layer.run_at_once(scaled_mm_sm90_int8_by_row)) return;
#endif
  const int64_t scales = layer.space().add(layer.x().m * 4), zeros = layer.space().add(azp_adj ? layer.x().m * 4 : 0);
  layer.space().allocate(x);
  auto* scale = layer.space().at<float>(scales);
  auto* azp = azp_adj ? layer.space().at<int32_t>(zeros) : nullptr;
  p.a_scale = scale;
  p.a_per_token = true;
  p.azp = azp;
  p.azp_per_token = true;
  layer.run([&](const Where& at, void* codes) { int8_by_row(at, layer.x(), codes, scale, azp); });
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                   const MaybeTensor& input_scale, const MaybeTensor& input_azp, const MaybeTensor& azp_adj,
                   int64_t out_features, std::optional<ScalarType> out_dtype) {
  const Tensor out = new_out("int8_linear", x, out_features, out_dtype);
  int8_linear_out(x, weight, weight_scale, bias, input_scale, input_azp, azp_adj, out);
  return out;
}

// ---- FP8 ----------------------------------------------------------------------------------------

void fp8_linear_out(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                    const MaybeTensor& input_scale, const MaybeTensor& scale_ub, bool per_token, const Tensor& out) {
  const char* op = "fp8_linear";
  check_out_shape(op, x, out);
  const bool quantized = x.scalar_type() == ScalarType::Float8_e4m3fn;
  if (!quantized) check_float(op, x);
  ScaledLinear layer(op, x, weight, ScalarType::Float8_e4m3fn, bias, out);
  layer.weight_scale(weight_scale);
  ScaledMM& p = layer.problem();
  const int64_t m = layer.x().m;
  if (quantized) {
    QCORE_CHECK(input_scale.has_value(), op, ": x is quantized already; its scale must be given as input_scale");
    check_same_device(op, "input_scale", *input_scale, x);
    check_dtype(op, "input_scale", *input_scale, {ScalarType::Float});
    check_contiguous(op, "input_scale", *input_scale);
    QCORE_CHECK(input_scale->numel() == 1 || input_scale->numel() == m, op, ": input_scale has shape ",
                shape_of(*input_scale), "; it must have 1 or ", m, " elements");
    p.a_scale = data_of<float>(input_scale);
    p.a_per_token = input_scale->numel() != 1;
    layer.space().allocate(x);
    return layer.run_on(layer.x().data(), layer.x().stride);
  }
  check_one(op, "input_scale", input_scale, x, ScalarType::Float);
  check_one(op, "scale_ub", scale_ub, x, ScalarType::Float);
  QCORE_CHECK(!scale_ub || (per_token && !input_scale), op, ": scale_ub is for scales that are computed for each row");
  if (input_scale) {
    layer.space().allocate(x);
    p.a_scale = data_of<float>(input_scale);
    return layer.run([&](const Where& at, void* codes) { fp8_by_scale(at, layer.x(), codes, p.a_scale); });
  }
#ifdef QCORE_CUDA_SM90A
  const auto at_once = [&](const ScaledMM& problem, const Rows& rows) {
    return scaled_mm_sm90_fp8_by_row(problem, rows, data_of<float>(scale_ub));
  };
  if ((per_token || m == 1) && layer.run_at_once(at_once)) return;
#endif
  const int64_t scales = layer.space().add(std::max<int64_t>(per_token ? m : 1, 1) * 4), amax = layer.space().add(4);
  layer.space().allocate(x);
  auto* scale = layer.space().at<float>(scales);
  p.a_scale = scale;
  p.a_per_token = per_token;
  layer.run([&](const Where& at, void* codes) {
    if (per_token) return fp8_by_row(at, layer.x(), codes, scale, data_of<float>(scale_ub));
    fp8_by_tensor(at, layer.x(), codes, scale, layer.space().at<uint32_t>(amax));
  });
}

Tensor fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                  const MaybeTensor& input_scale, const MaybeTensor& scale_ub, bool per_token, int64_t out_features,
                  std::optional<ScalarType> out_dtype) {
  const Tensor out = new_out("fp8_linear", x, out_features, out_dtype);
  fp8_linear_out(x, weight, weight_scale, bias, input_scale, scale_ub, per_token, out);
  return out;
}

// ---- FP8 by blocks ------------------------------------------------------------------------------

// Covered by the scale of a group of zeros: any will do that is no denormal.
constexpr float kEps = 1e-30f;

void fp8_block_linear_out(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                          const Tensor& out) {
  const char* op = "fp8_block_linear";
  check_out_shape(op, x, out);
  check_float(op, x);
  ScaledLinear layer(op, x, weight, ScalarType::Float8_e4m3fn, bias, out);
  ScaledMM& p = layer.problem();
  const int64_t k_blocks = ceil_div(layer.x().k, 128), wide = ceil_div(k_blocks, 4) * 4;
  const int64_t width = weight_scale.dim() == 2 && weight_scale.size(1) == wide ? wide : k_blocks;
  check_tensor(op, "weight_scale", weight_scale, x, {ScalarType::Float}, {ceil_div(p.n, 128), width});
  p.by_block = true;
  p.b_scale = static_cast<const float*>(weight_scale.data_ptr());
  p.b_scale_n = width;
  p.b_scale_k = 1;
  // Columns of multiples of 16 bytes, as the copy engine wants them.
  const int64_t column = ceil_div(layer.x().m, 4) * 4, scales = layer.space().add(column * k_blocks * 4);
  layer.space().allocate(x);
  auto* scale = layer.space().at<float>(scales);
  p.a_scale = scale;
  p.a_scale_m = 1;
  p.a_scale_k = column;
  layer.run([&](const Where& at, void* codes) { fp8_by_group_of_128(at, layer.x(), codes, scale, column, kEps); });
}

Tensor fp8_block_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale, const MaybeTensor& bias,
                        int64_t out_features, std::optional<ScalarType> out_dtype) {
  const Tensor out = new_out("fp8_block_linear", x, out_features, out_dtype);
  fp8_block_linear_out(x, weight, weight_scale, bias, out);
  return out;
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("int8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
        "Tensor? input_azp, Tensor? azp_adj, int out_features, ScalarType? out_dtype) -> Tensor");
  m.def("int8_linear.out(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
        "Tensor? input_azp, Tensor? azp_adj, *, Tensor(a!) out) -> ()");
  m.def("fp8_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
        "Tensor? scale_ub, bool per_token, int out_features, ScalarType? out_dtype) -> Tensor");
  m.def("fp8_linear.out(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "
        "Tensor? scale_ub, bool per_token, *, Tensor(a!) out) -> ()");
  m.def("fp8_block_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, int out_features, "
        "ScalarType? out_dtype) -> Tensor");
  m.def("fp8_block_linear.out(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, *, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&qcore_cuda::int8_linear));
  m.impl("int8_linear.out", TORCH_BOX(&qcore_cuda::int8_linear_out));
  m.impl("fp8_linear", TORCH_BOX(&qcore_cuda::fp8_linear));
  m.impl("fp8_linear.out", TORCH_BOX(&qcore_cuda::fp8_linear_out));
  m.impl("fp8_block_linear", TORCH_BOX(&qcore_cuda::fp8_block_linear));
  m.impl("fp8_block_linear.out", TORCH_BOX(&qcore_cuda::fp8_block_linear_out));
}
