// cutlass_scaled_mm and cutlass_scaled_mm_azp: checks, and which kernel runs.

#include "scaled_mm.h"

#include <string_view>

#include "scaled_mm_tiles.h"

namespace qcore_cuda {
namespace {

constexpr const char* kOp = "cutlass_scaled_mm";

void check_scale(const char* name, const Tensor& scale, const Tensor& a) {
  check_same_device(kOp, name, scale, a);
  check_dtype(kOp, name, scale, {ScalarType::Float});
}

ScaledMM check(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& a_scales, const Tensor& b_scales,
               const std::optional<Tensor>& bias) {
  ScaledMM p{};
  check_cuda(kOp, "a", a);
  check_same_device(kOp, "b", b, a);
  check_same_device(kOp, "out", out, a);
  check_dtype(kOp, "a", a, {ScalarType::Char, ScalarType::Float8_e4m3fn});
  check_dtype(kOp, "b", b, {a.scalar_type()});
  check_dtype(kOp, "out", out, {ScalarType::BFloat16, ScalarType::Half});
  QCORE_CHECK(a.dim() == 2, kOp, ": a has shape ", shape_of(a), "; it must be [M, K]");
  QCORE_CHECK(b.dim() == 2 && b.size(0) == a.size(1), kOp, ": b has shape ", shape_of(b), "; with a ",
                  shape_of(a), " it must be [", a.size(1), ", N]");
  constexpr int64_t kMost = 2147483647;
  QCORE_CHECK(a.size(0) <= kMost && b.size(0) <= kMost && b.size(1) <= kMost, kOp, ": a has shape ",
                  shape_of(a), ", b ", shape_of(b), "; no size may exceed ", kMost);
  p.m = static_cast<int>(a.size(0));
  p.k = static_cast<int>(a.size(1));
  p.n = static_cast<int>(b.size(1));
  check_shape(kOp, "out", out, {p.m, p.n});
  QCORE_CHECK(p.k <= 1 || (a.stride(1) == 1 && b.stride(0) == 1), kOp, ": a has strides ", a.stride(0), ", ",
                  a.stride(1), " and b ", b.stride(0), ", ", b.stride(1), "; a must be row-major, b column-major");
  QCORE_CHECK(p.n <= 1 || out.stride(1) == 1, kOp, ": out must be row-major");
  p.a_stride = p.m > 1 ? a.stride(0) : p.k;
  p.b_stride = p.n > 1 ? b.stride(1) : p.k;
  p.out_stride = p.m > 1 ? out.stride(0) : p.n;
  p.a = a.data_ptr();
  p.b = b.data_ptr();
  p.out = out.data_ptr();
  const auto multiple = [](int64_t v) { return v % 16 == 0; };
  QCORE_CHECK(multiple(p.k) && multiple(p.a_stride) && multiple(p.b_stride), kOp, ": K is ", p.k,
                  ", the rows of a are ", p.a_stride, " apart, the columns of b ", p.b_stride,
                  "; all must be multiples of 16 (pad a and b with zeros)");
  QCORE_CHECK(p.m == 0 || p.n == 0 || p.k == 0 ||
                      (reinterpret_cast<uintptr_t>(p.a) % 16 == 0 && reinterpret_cast<uintptr_t>(p.b) % 16 == 0),
                  kOp, ": a and b must begin at multiples of 16 bytes");
  p.is_fp8 = a.scalar_type() == ScalarType::Float8_e4m3fn;
  p.out_bf16 = out.scalar_type() == ScalarType::BFloat16;

  check_scale("a_scales", a_scales, a);
  check_scale("b_scales", b_scales, a);
  p.a_scale = static_cast<const float*>(a_scales.data_ptr());
  p.b_scale = static_cast<const float*>(b_scales.data_ptr());
  const int64_t of_a = a_scales.numel(), of_b = b_scales.numel();
  const bool per_row = (of_a == 1 || of_a == p.m) && (of_b == 1 || of_b == p.n);
  if (per_row) {
    p.a_per_token = of_a != 1;
    p.b_per_channel = of_b != 1;
    QCORE_CHECK(a_scales.is_contiguous() && b_scales.is_contiguous(), kOp,
                    ": a_scales and b_scales must be contiguous");
  } else {
    const int64_t k_blocks = ceil_div(p.k, 128), n_blocks = ceil_div(p.n, 128);
    const bool blocks = a_scales.dim() == 2 && a_scales.size(0) == p.m && a_scales.size(1) == k_blocks &&
                        b_scales.dim() == 2 && b_scales.size(0) == k_blocks && b_scales.size(1) == n_blocks;
    QCORE_CHECK(blocks, kOp, ": a_scales has shape ", shape_of(a_scales), ", b_scales ", shape_of(b_scales),
                    "; for M, N, K = ", p.m, ", ", p.n, ", ", p.k, " they have 1 or ", p.m, ", and 1 or ", p.n,
                    " elements, or are [", p.m, ", ", k_blocks, "] and [", k_blocks, ", ", n_blocks, "]");
    QCORE_CHECK(p.is_fp8, kOp, ": scales by block are for FP8; a is ", dtype_name(a.scalar_type()));
    p.by_block = true;
    p.a_scale_m = a_scales.stride(0);
    p.a_scale_k = a_scales.stride(1);
    p.b_scale_k = b_scales.stride(0);
    p.b_scale_n = b_scales.stride(1);
  }
  if (bias) {
    check_tensor(kOp, "bias", *bias, a, {out.scalar_type()}, {p.n});
    p.bias = bias->data_ptr();
  }
  set_device(p, a.get_device_index());
  QCORE_CHECK(!p.is_fp8 || p.capability >= 89, kOp, ": FP8 needs compute capability 8.9; this device has ",
                  p.capability / 10, ".", p.capability % 10);
  return p;
}

// Whether the result can be written in pieces of 16 bytes.
bool in_pieces_of_16(const ScaledMM& p) {
  return p.n % 8 == 0 && p.out_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
}

// Whether 32 bits are enough to find a row's scales by block.
bool scales_near(const ScaledMM& p) { return !p.by_block || int64_t{p.m} * p.a_scale_m < (int64_t{1} << 31); }

void run(const ScaledMM& p, std::string_view path) {
  if (path == "skinny") {
    QCORE_CHECK(p.m <= kSkinnyMaxM, kOp, ": the skinny path takes M up to ", kSkinnyMaxM, "; it is ", p.m);
    return scaled_mm_skinny(p);
  }
  if (path == "portable" || p.k == 0) return scaled_mm_portable(p);
#ifdef QCORE_CUDA_SM90A
  if (path == "sm90_columns") {
    const int most = p.by_block ? kSkinnyMaxM / 2 : kSkinnyMaxM;
    QCORE_CHECK(p.capability == 90 && p.m <= most && scales_near(p), kOp, ": this path needs sm_90, M up to ", most,
                ", and a_scales that span less than 2^31 elements");
    return scaled_mm_sm90_columns(p);
  }
  for (const OwnTile& tile : kOwnTiles) {
    if (path != tile.name) continue;
    QCORE_CHECK(tile.has_room(p), kOp, ": with scales by block this path takes K up to ", kBlocksMostK, "; it is ", p.k);
    QCORE_CHECK(p.capability == 90 && tile.takes(p) && in_pieces_of_16(p) && scales_near(p), kOp,
                ": this path needs sm_90, scales by row", tile.rows > 128 ? "" : " or block",
                ", N in multiples of 8, and a_scales that span less than 2^31 elements");
    return tile.run(p);
  }
  for (const Sm90Tile& tile : kSm90Tiles) {
    if (path != tile.name) continue;
    QCORE_CHECK(p.capability == 90 && !p.by_block && in_pieces_of_16(p), kOp,
                ": this path needs sm_90, scales by row, and N in multiples of 8");
    QCORE_CHECK(tile.takes(p), kOp, ": this path is for FP8");
    return tile.run(p);
  }
#endif
  fail(kOp, ": no path is called ", std::string(path));
}

std::string_view choose(const ScaledMM& p) {
#ifdef QCORE_CUDA_SM90A
  if (p.capability == 90 && in_pieces_of_16(p) && scales_near(p)) {
    const std::string_view tile = choose_sm90_path(p);
    if (!tile.empty()) return tile;
  }
#endif
  return p.m <= kSkinnyMaxM ? "skinny" : "portable";
}

Tensor new_output(const Tensor& a, const Tensor& b, ScalarType out_dtype) {
  check_cuda(kOp, "a", a);
  QCORE_CHECK(a.dim() == 2 && b.dim() == 2, kOp, ": a has shape ", shape_of(a), ", b ", shape_of(b),
              "; they must be [M, K] and [K, N]");
  return new_tensor(a, {a.size(0), b.size(1)}, out_dtype);
}

void finish(const ScaledMM& p, const Tensor& out, const std::string& path) {
  if (p.m == 0 || p.n == 0) return;
  const Launch launch(out);
  ScaledMM ready = p;
  ready.stream = launch.stream();
  run(ready, path.empty() ? choose(ready) : std::string_view(path));
  check_launch(kOp);
}

void cutlass_scaled_mm(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& a_scales,
                       const Tensor& b_scales, const std::optional<Tensor>& bias) {
  finish(check(out, a, b, a_scales, b_scales, bias), out, "");
}

ScaledMM check_azp(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& a_scales,
                   const Tensor& b_scales, const Tensor& azp_adj, const std::optional<Tensor>& azp,
                   const std::optional<Tensor>& bias) {
  ScaledMM p = check(out, a, b, a_scales, b_scales, bias);
  QCORE_CHECK(!p.is_fp8 && !p.by_block, kOp, "_azp: a is ", dtype_name(a.scalar_type()),
                  "; zero points are for int8 with scales by tensor, row or column");
  check_tensor(kOp, "azp_adj", azp_adj, a, {ScalarType::Int}, {p.n});
  p.azp_adj = static_cast<const int32_t*>(azp_adj.data_ptr());
  if (azp) {
    check_same_device(kOp, "azp", *azp, a);
    check_dtype(kOp, "azp", *azp, {ScalarType::Int});
    check_contiguous(kOp, "azp", *azp);
    QCORE_CHECK(azp->numel() == 1 || azp->numel() == p.m, kOp, ": azp has shape ", shape_of(*azp),
                    "; it must have 1 or M = ", p.m, " elements");
    p.azp = static_cast<const int32_t*>(azp->data_ptr());
    p.azp_per_token = azp->numel() != 1;
  }
  return p;
}

void cutlass_scaled_mm_azp(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& a_scales,
                           const Tensor& b_scales, const Tensor& azp_adj, const std::optional<Tensor>& azp,
                           const std::optional<Tensor>& bias) {
  finish(check_azp(out, a, b, a_scales, b_scales, azp_adj, azp, bias), out, "");
}

Tensor new_scaled_mm(const Tensor& a, const Tensor& b, const Tensor& a_scales, const Tensor& b_scales,
                     ScalarType out_dtype, const std::optional<Tensor>& bias) {
  const Tensor out = new_output(a, b, out_dtype);
  cutlass_scaled_mm(out, a, b, a_scales, b_scales, bias);
  return out;
}

Tensor new_scaled_mm_azp(const Tensor& a, const Tensor& b, const Tensor& a_scales, const Tensor& b_scales,
                         ScalarType out_dtype, const Tensor& azp_adj, const std::optional<Tensor>& azp,
                         const std::optional<Tensor>& bias) {
  const Tensor out = new_output(a, b, out_dtype);
  cutlass_scaled_mm_azp(out, a, b, a_scales, b_scales, azp_adj, azp, bias);
  return out;
}

// For tests and measurements: by a path that is named.
void scaled_mm_by(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& a_scales,
                  const Tensor& b_scales, const std::optional<Tensor>& azp_adj, const std::optional<Tensor>& azp,
                  const std::optional<Tensor>& bias, std::string path) {
  finish(azp_adj ? check_azp(out, a, b, a_scales, b_scales, *azp_adj, azp, bias)
                 : check(out, a, b, a_scales, b_scales, bias),
         out, path);
}

std::string scaled_mm_paths() {
  std::string names = "skinny,portable";
#ifdef QCORE_CUDA_SM90A
  names += ",sm90_columns";
  for (const OwnTile& tile : kOwnTiles) names += "," + std::string(tile.name);
  for (const Sm90Tile& tile : kSm90Tiles) names += "," + std::string(tile.name);
#endif
  return names;
}

}  // namespace

void set_device(ScaledMM& p, int32_t device) {
  const DeviceFacts& facts = device_facts(device);
  p.device = device;
  p.capability = facts.capability;
  p.sm_count = facts.sm_count;
  p.early_launch = facts.sm90_code;
}

void scaled_mm(const char* op, const ScaledMM& p) {
  QCORE_CHECK(!p.is_fp8 || p.capability >= 89, op, ": FP8 needs compute capability 8.9; this device has ",
              p.capability / 10, ".", p.capability % 10);
  if (p.m == 0 || p.n == 0) return;
  run(p, choose(p));
  check_launch(op);
}

}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("cutlass_scaled_mm(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, "
        "Tensor? bias=None) -> ()");
  m.def("cutlass_scaled_mm_azp(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, "
        "Tensor azp_adj, Tensor? azp=None, Tensor? bias=None) -> ()");
  // The same, making what they return.
  m.def("cutlass_scaled_mm.new(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, ScalarType out_dtype, "
        "Tensor? bias=None) -> Tensor");
  m.def("cutlass_scaled_mm_azp.new(Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, ScalarType out_dtype, "
        "Tensor azp_adj, Tensor? azp=None, Tensor? bias=None) -> Tensor");
  m.def("scaled_mm_by(Tensor(a!) out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? azp_adj, "
        "Tensor? azp, Tensor? bias, str path) -> ()");
  m.def("scaled_mm_paths() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CUDA, m) {
  m.impl("cutlass_scaled_mm", TORCH_BOX(&qcore_cuda::cutlass_scaled_mm));
  m.impl("cutlass_scaled_mm_azp", TORCH_BOX(&qcore_cuda::cutlass_scaled_mm_azp));
  m.impl("cutlass_scaled_mm.new", TORCH_BOX(&qcore_cuda::new_scaled_mm));
  m.impl("cutlass_scaled_mm_azp.new", TORCH_BOX(&qcore_cuda::new_scaled_mm_azp));
  m.impl("scaled_mm_by", TORCH_BOX(&qcore_cuda::scaled_mm_by));
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CompositeExplicitAutograd, m) {
  m.impl("scaled_mm_paths", TORCH_BOX(&qcore_cuda::scaled_mm_paths));
}
