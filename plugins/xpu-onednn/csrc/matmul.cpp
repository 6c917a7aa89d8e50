// The one op that computes: every argument is checked against the others before any memory is read.

#include "matmul.h"

#include "int8_safety.h"

namespace qcore_xpu {
namespace {

constexpr const char* kOp = "qcore_xpu::matmul";
using Optional = std::optional<Tensor>;

struct Shape {
  int64_t m, n, k;
};

Element element_of(const char* name, const Tensor& t) {
  switch (dtype_of(t)) {
    case ScalarType::Float: return kF32;
    case ScalarType::Half: return kF16;
    case ScalarType::BFloat16: return kBF16;
    case ScalarType::Float8_e4m3fn: return kE4M3;
    case ScalarType::Float8_e5m2: return kE5M2;
    case ScalarType::Float8_e8m0fnu: return kE8M0;
    case ScalarType::Char: return kS8;
    case ScalarType::Byte: return kU8;
    case ScalarType::Int: return kS32;
    default: fail(kOp, ": ", name, " is ", dtype_name(dtype_of(t)), ", which no product takes");
  }
}

// The type by its name, "" for that of the dtype.
Element element_named(const char* name, const Tensor& t, const std::string& type) {
  if (type.empty()) return element_of(name, t);
  if (type == "u4") return kU4;
  if (type == "e2m1") return kE2M1;
  fail(kOp, ": ", name, "_type is '", type, "'; allowed: '', 'u4', 'e2m1'");
}

void check_one_of(const char* name, const Tensor& t, Element element, std::initializer_list<Element> allowed) {
  for (Element one : allowed) {
    if (element == one) return;
  }
  fail(kOp, ": ", name, " is ", dtype_name(dtype_of(t)), ", which is not allowed there");
}

// Codes in an element of the tensor.
int64_t packed_in(const char* name, const Tensor& t, Element element) {
  if (element != kU4 && element != kE2M1) return 1;
  const ScalarType dtype = dtype_of(t);
  QCORE_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Byte, kOp, ": ", name, " has codes of 4 bits and is ",
              dtype_name(dtype), "; allowed: Int, Byte");
  return dtype == ScalarType::Int ? 8 : 2;
}

Matrix matrix_of(const char* name, const Tensor& t, Element element, int64_t& rows, int64_t& k) {
  QCORE_CHECK(t.dim() == 2, kOp, ": ", name, " has shape ", shape_of(t), "; it must have two dimensions");
  const int64_t pack = packed_in(name, t, element);
  rows = t.size(0);
  k = t.size(1) * pack;
  QCORE_CHECK(t.stride(0) >= 0 && t.stride(1) >= 0, kOp, ": ", name, " has a negative stride");
  QCORE_CHECK(pack == 1 || t.size(1) <= 1 || t.stride(1) == 1, kOp, ": ", name,
              " is packed, but its words do not lie side by side along K");
  Matrix x{};
  x.type = element;
  x.outer_stride = t.stride(0) * pack;
  x.k_stride = pack == 1 ? t.stride(1) : 1;
  return x;
}

// Scales: one element, or [ceil(outer / outer_group), ceil(k / k_group)].
Grouped scales_of(const char* name, const Optional& t, int64_t outer, int64_t k, int64_t outer_group, int64_t k_group) {
  Grouped g{};
  if (!t) return g;
  Element element = element_of(name, *t);
  if (element == kU8) element = kE8M0;  // exponents are often kept as plain bytes
  check_one_of(name, *t, element, {kF32, kF16, kBF16, kE8M0, kE4M3});
  g.type = element;
  if (t->numel() == 1 && outer_group >= outer && k_group >= k) {
    g.outer_size = outer > 0 ? outer : 1;
    g.k_size = k;
    return g;
  }
  QCORE_CHECK(outer_group >= 1 && k_group >= 1, kOp, ": ", name, " has groups of ", outer_group, " x ", k_group);
  const int64_t outers = (outer + outer_group - 1) / outer_group, ks = (k + k_group - 1) / k_group;
  QCORE_CHECK(t->dim() == 2 && t->size(0) == outers && t->size(1) == ks, kOp, ": ", name, " has shape ", shape_of(*t),
              "; with groups of ", outer_group, " x ", k_group, " it must be [", outers, ", ", ks, "]");
  QCORE_CHECK(t->stride(0) >= 0 && t->stride(1) >= 0, kOp, ": ", name, " has a negative stride");
  g.outer_size = outer_group;
  g.k_size = k_group < k ? k_group : k;
  g.outer_stride = t->stride(0);
  g.k_stride = t->stride(1);
  return g;
}

Grouped single(Element element, int64_t outer, int64_t k) {
  Grouped g{};
  g.type = element;
  g.outer_size = outer > 0 ? outer : 1;
  g.k_size = k;
  return g;
}

// Of a: int32, one or [M, 1]. Of b: one int8, or int32 [ceil(K / k_group), N / 8] with codes of 4 bits
// packed along N.
Grouped a_zeros(const Optional& t, const Shape& s) {
  if (!t) return {};
  QCORE_CHECK(dtype_of(*t) == ScalarType::Int, kOp, ": a_zero is ", dtype_name(dtype_of(*t)), "; it must be Int");
  Grouped g = single(kS32, s.m, s.k);
  if (t->numel() == 1) return g;
  QCORE_CHECK(t->dim() == 2 && t->size(0) == s.m && t->size(1) == 1, kOp, ": a_zero has shape ", shape_of(*t),
              "; it must have one element or be [", s.m, ", 1]");
  g.outer_size = 1;
  g.outer_stride = t->stride(0);
  return g;
}

Grouped b_zeros(const Optional& t, const Shape& s, int64_t k_group) {
  if (!t) return {};
  if (dtype_of(*t) == ScalarType::Char && t->numel() == 1) return single(kS8, s.n, s.k);
  QCORE_CHECK(dtype_of(*t) == ScalarType::Int, kOp, ": b_zero is ", dtype_name(dtype_of(*t)),
              "; it must be one Char, or Int with codes of 4 bits");
  const int64_t ks = (s.k + k_group - 1) / k_group;
  QCORE_CHECK(t->dim() == 2 && t->size(0) == ks && t->size(1) * 8 == s.n && t->is_contiguous(), kOp,
              ": b_zero has shape ", shape_of(*t), "; for N = ", s.n, " in ", ks, " groups it must be contiguous [", ks,
              ", N / 8]");
  Grouped g{};
  g.type = kU4;
  g.outer_size = 1;
  g.k_size = k_group < s.k ? k_group : s.k;
  g.outer_stride = 1;
  g.k_stride = s.n;
  return g;
}

const void* data_of(const Optional& t) { return t ? t->data_ptr() : nullptr; }

void check_device(const char* name, const Optional& t, const Tensor& first, bool on_cpu) {
  if (!t) return;
  QCORE_CHECK(t->is_cpu() == on_cpu, kOp, ": ", name,
              on_cpu ? " is not on the CPU, and the queue is" : " is on the CPU, and the queue is not");
  QCORE_CHECK(on_cpu || t->get_device_index() == first.get_device_index(), kOp, ": ", name,
              " is on another device than a");
}

}  // namespace

// out[m, n] = bias[n] + sum over k of (a - a_zero) * a_scale * (b - b_zero) * b_scale; a is [M, K], b is
// [N, K]. queue: the address of the sycl::queue to work on, or 0 for tensors on the CPU. path: "auto",
// "onednn" (or fail) or "sycl". Returns what ran.
std::string matmul(Tensor out, Tensor a, std::string a_type, Optional a_scale, int64_t a_group, Optional a_zero,
                   Tensor b, std::string b_type, Optional b_scale, int64_t b_group_n, int64_t b_group_k,
                   Optional b_zero, Optional bias, int64_t queue, std::string path) {
  QCORE_CHECK(queue != 0 || a.is_cpu(), kOp, ": a is not on the CPU, and no queue was given");
  Place& place = place_of(queue);
  check_device("a", a, a, place.on_cpu);
  check_device("b", b, a, place.on_cpu);
  check_device("out", out, a, place.on_cpu);
  check_device("a_scale", a_scale, a, place.on_cpu);
  check_device("a_zero", a_zero, a, place.on_cpu);
  check_device("b_scale", b_scale, a, place.on_cpu);
  check_device("b_zero", b_zero, a, place.on_cpu);
  check_device("bias", bias, a, place.on_cpu);
  QCORE_CHECK(path == "auto" || path == "onednn" || path == "sycl", kOp, ": path is '", path,
              "'; allowed: auto, onednn, sycl");

  Product p{};
  Shape s{};
  int64_t b_k = 0;
  const Element a_element = element_named("a", a, a_type), b_element = element_named("b", b, b_type);
  check_one_of("a", a, a_element, {kF32, kF16, kBF16, kE4M3, kE5M2, kE2M1, kS8, kU8});
  check_one_of("b", b, b_element, {kF32, kF16, kBF16, kE4M3, kE5M2, kE2M1, kU4, kS8});
  p.a = matrix_of("a", a, a_element, s.m, s.k);
  p.b = matrix_of("b", b, b_element, s.n, b_k);
  QCORE_CHECK(s.k == b_k && s.k >= 1, kOp, ": a has shape ", shape_of(a), " and b ", shape_of(b), ": ", s.k, " and ",
              b_k, " elements of K");
  p.m = s.m, p.n = s.n, p.k = s.k;
  // a_group < 0: one scale for all of a; 0: one a row; else one for so many elements of a row.
  p.a.scale = scales_of("a_scale", a_scale, s.m, s.k, a_group < 0 ? (s.m > 0 ? s.m : 1) : 1, a_group <= 0 ? s.k : a_group);
  p.b.scale = scales_of("b_scale", b_scale, s.n, s.k, b_group_n, b_group_k);
  p.a.zero = a_zeros(a_zero, s);
  p.b.zero = b_zeros(b_zero, s, b_group_k);
  if (bias) {
    const Element element = element_of("bias", *bias);
    check_one_of("bias", *bias, element, {kF32, kF16, kBF16});
    QCORE_CHECK(bias->dim() == 1 && bias->size(0) == s.n && bias->is_contiguous(), kOp, ": bias has shape ",
                shape_of(*bias), "; it must be contiguous [", s.n, "]");
    p.bias_type = element;
  }
  const Element out_element = element_of("out", out);
  check_one_of("out", out, out_element, {kF32, kF16, kBF16});
  QCORE_CHECK(out.dim() == 2 && out.size(0) == s.m && out.size(1) == s.n && (s.n <= 1 || out.stride(1) == 1) &&
                  (s.m <= 1 || out.stride(0) >= s.n),
              kOp, ": out has shape ", shape_of(out), "; it must be [", s.m, ", ", s.n, "] with rows that lie apart");
  p.out_type = out_element;
  p.out_stride = out.stride(0);
  if (s.m == 0 || s.n == 0) return "nothing to do";

  const Pointers at{a.data_ptr(), data_of(a_scale), data_of(a_zero), b.data_ptr(), data_of(b_scale), data_of(b_zero),
                    data_of(bias), out.data_ptr()};
  std::string name;
  if (path != "sycl") {
    if (run_onednn(place, p, at, a, name)) return "onednn " + name;
    QCORE_CHECK(path != "onednn", kOp, ": ", name);
    name = " (" + name + ")";
  }
  run_sycl(place, p, at);
  return "sycl" + name;
}

namespace {

std::string onednn_version() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

// A queue of SYCL's CPU device, as the address that torch would give of one of its own.
int64_t cpu_queue() { return reinterpret_cast<int64_t>(&place_of(0).queue); }

int64_t most_primitives() { return kMostPrimitives; }

bool may_saturate_by_name(std::string implementation, bool has_vnni, std::string a, std::string b) {
  const auto named = [](const std::string& type) {
    return type == "s8" ? kS8 : type == "u8" ? kU8 : type == "u4" ? kU4 : kF32;
  };
  return may_saturate(implementation, has_vnni, named(a), named(b));
}

}  // namespace
}  // namespace qcore_xpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_xpu, m) {
  m.def(
      "matmul(Tensor(a!) out, Tensor a, str a_type, Tensor? a_scale, int a_group, Tensor? a_zero, Tensor b, "
      "str b_type, Tensor? b_scale, int b_group_n, int b_group_k, Tensor? b_zero, Tensor? bias, int queue, str path) "
      "-> str");
  m.def("onednn_version() -> str");
  m.def("devices() -> str");
  m.def("cpu_queue() -> int");
  m.def("cached_primitives() -> int");
  m.def("most_primitives() -> int");
  m.def("compiled_kernels() -> int");
  m.def("may_saturate(str implementation, bool has_vnni, str a, str b) -> bool");
  m.def("onednn_has_vnni() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_xpu, CompositeExplicitAutograd, m) {
  m.impl("matmul", TORCH_BOX(&qcore_xpu::matmul));
  m.impl("onednn_version", TORCH_BOX(&qcore_xpu::onednn_version));
  m.impl("cpu_queue", TORCH_BOX(&qcore_xpu::cpu_queue));
  m.impl("devices", TORCH_BOX(&qcore_xpu::describe_devices));
  m.impl("cached_primitives", TORCH_BOX(&qcore_xpu::cached_primitives));
  m.impl("most_primitives", TORCH_BOX(&qcore_xpu::most_primitives));
  m.impl("compiled_kernels", TORCH_BOX(&qcore_xpu::compiled_kernels));
  m.impl("may_saturate", TORCH_BOX(&qcore_xpu::may_saturate_by_name));
  m.impl("onednn_has_vnni", TORCH_BOX(&qcore_xpu::onednn_has_vnni));
}
