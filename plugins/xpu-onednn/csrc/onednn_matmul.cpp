// The product as a matmul primitive of oneDNN. Attributes are the same on every device.

#include <list>
#include <mutex>
#include <unordered_map>

#include "int8_safety.h"
#include "matmul.h"

namespace qcore_xpu {
namespace {

using dnnl::memory;
using Type = memory::data_type;

constexpr int kPerTensor = 0, kPerColumn = 1 << 1, kByGroup = (1 << 0) | (1 << 1);

Type type_of(int element) {
  switch (element) {
    case kF32: return Type::f32;
    case kF16: return Type::f16;
    case kBF16: return Type::bf16;
    case kE4M3: return Type::f8_e4m3;
    case kE5M2: return Type::f8_e5m2;
    case kE8M0: return Type::e8m0;
    case kE2M1: return Type::f4_e2m1;
    case kU4: return Type::u4;
    case kS8: return Type::s8;
    case kU8: return Type::u8;
    case kS32: return Type::s32;
    default: return Type::undef;
  }
}

bool is_integer(int type) { return type == kU4 || type == kS8 || type == kU8; }
bool is_float(int type) { return type == kF32 || type == kF16 || type == kBF16; }

// Scales or zero points as oneDNN has them: a mask, groups, and the memory's form.
struct Quantization {
  int mask = kPerTensor;
  memory::dims groups;
  memory::desc desc;
};

int64_t count(int64_t all, int64_t size) { return (all + size - 1) / size; }

// Of a matrix with `outer` rows of `k`; groups are written (outer, k) for a and (k, outer) for b.
// False where oneDNN has no such form.
bool quantization_of(const Grouped& g, int64_t outer, int64_t k, bool weights, Quantization& made) {
  const int64_t outers = count(outer, g.outer_size), ks = count(k, g.k_size);
  const Type type = type_of(g.type);
  if (outers == 1 && ks == 1) {
    made.desc = memory::desc({1}, type, memory::dims{1});
    return true;
  }
  if ((outers > 1 && outer % g.outer_size) || (ks > 1 && k % g.k_size)) return false;  // the last is shorter
  const int64_t outer_group = outer / outers, k_group = k / ks;
  if (weights) {
    if (outers > 1 && g.outer_stride != 1) return false;
    if (ks == 1 && outer_group == 1) {
      made.mask = kPerColumn;
      made.desc = memory::desc({outer}, type, memory::dims{1});
      return true;
    }
    if (ks > 1 && g.k_stride != outers) return false;
    made.groups = {k_group, outer_group};
    made.desc = memory::desc({ks, outers}, type, memory::dims{outers, 1});
  } else {
    if (outer_group != 1 || g.outer_stride != ks || (ks > 1 && g.k_stride != 1)) return false;
    made.groups = {1, k_group};
    made.desc = memory::desc({outers, ks}, type, memory::dims{ks, 1});
  }
  made.mask = kByGroup;
  return true;
}

struct Primitive {
  dnnl::matmul matmul;  // empty where it was refused
  std::string name;     // the implementation's, or why it was refused
  memory::desc a, b, bias, out, scratch;
  Quantization a_scale, a_zero, b_scale, b_zero;
};

// Rows that lie one behind the other are one row to oneDNN where there is only one.
int64_t row_stride(const Matrix& x, int64_t rows, int64_t k) { return rows == 1 && x.k_stride == 1 ? k : x.outer_stride; }

void build(const Place& place, const Product& p, Primitive& made) {
  made.a = memory::desc({p.m, p.k}, type_of(p.a.type), memory::dims{row_stride(p.a, p.m, p.k), p.a.k_stride});
  made.b = memory::desc({p.k, p.n}, type_of(p.b.type), memory::dims{p.b.k_stride, row_stride(p.b, p.n, p.k)});
  made.out = memory::desc({p.m, p.n}, type_of(p.out_type), memory::dims{p.m == 1 ? p.n : p.out_stride, 1});
  if (p.bias_type != kNone) made.bias = memory::desc({1, p.n}, type_of(p.bias_type), memory::dims{p.n, 1});

  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  struct Setting {
    const Grouped& grouped;
    Quantization& quantization;
    int argument;
    bool scale;
  };
  for (const Setting& s : {Setting{p.a.scale, made.a_scale, DNNL_ARG_SRC, true},
                           Setting{p.a.zero, made.a_zero, DNNL_ARG_SRC, false},
                           Setting{p.b.scale, made.b_scale, DNNL_ARG_WEIGHTS, true},
                           Setting{p.b.zero, made.b_zero, DNNL_ARG_WEIGHTS, false}}) {
    if (s.grouped.type == kNone) continue;
    const bool weights = s.argument == DNNL_ARG_WEIGHTS;
    Quantization& q = s.quantization;
    if (!quantization_of(s.grouped, weights ? p.n : p.m, p.k, weights, q)) {
      made.name = "scales or zero points in a form that oneDNN has not";
      return;
    }
    if (s.scale) attr.set_scales(s.argument, q.mask, q.groups, type_of(s.grouped.type));
    else attr.set_zero_points(s.argument, q.mask, q.groups, type_of(s.grouped.type));
  }
  // Weights that are no floats of their own are made the activations' type, and no narrower one.
  if (is_float(p.a.type) && !is_float(p.b.type)) {
    const auto mode = p.a.type == kBF16   ? dnnl::fpmath_mode::bf16
                      : p.a.type == kF16 ? dnnl::fpmath_mode::f16
                                         : dnnl::fpmath_mode::strict;
    attr.set_fpmath_mode(mode, is_integer(p.b.type));
  }
  const auto desc = p.bias_type == kNone
                        ? dnnl::matmul::primitive_desc(place.engine, made.a, made.b, made.out, attr, true)
                        : dnnl::matmul::primitive_desc(place.engine, made.a, made.b, made.bias, made.out, attr, true);
  if (!desc) {
    made.name = "oneDNN has no implementation of these types here";
    return;
  }
  made.name = desc.impl_info_str();
  if (place.on_cpu && may_saturate(made.name, onednn_has_vnni(), Element(p.a.type), Element(p.b.type))) {
    made.name += " adds products of bytes with saturation on this processor";
    return;
  }
  made.scratch = desc.scratchpad_desc();
  made.matmul = dnnl::matmul(desc);
}

Primitive built(const Place& place, const Product& product) {
  Primitive made;
  try {
    build(place, product, made);
  } catch (const dnnl::error& error) {  // of an attribute: it has no such scales for such types
    made.matmul = dnnl::matmul();
    made.name = std::string("oneDNN: ") + error.what();
  }
  return made;
}

// The latest primitives, by place and product.
class Cache {
 public:
  std::shared_ptr<const Primitive> get(const Place& place, const Product& product) {
    std::string key(reinterpret_cast<const char*>(&product), sizeof product);
    key.append(reinterpret_cast<const char*>(&place.engine_id), sizeof place.engine_id);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_key_.find(key);
    if (found != by_key_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      return found->second->second;
    }
    order_.emplace_front(key, std::make_shared<const Primitive>(built(place, product)));
    by_key_[std::move(key)] = order_.begin();
    if (static_cast<int64_t>(order_.size()) > kMostPrimitives) {
      by_key_.erase(order_.back().first);
      order_.pop_back();
    }
    return order_.front().second;
  }

  int64_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(order_.size());
  }

 private:
  using Entry = std::pair<std::string, std::shared_ptr<const Primitive>>;
  std::mutex mutex_;
  std::list<Entry> order_;
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

Cache& cache() {
  static auto* all = new Cache;
  return *all;
}

memory memory_at(const memory::desc& desc, const Place& place, const void* data) {
  return dnnl::sycl_interop::make_memory(desc, place.engine, dnnl::sycl_interop::memory_kind::usm,
                                         const_cast<void*>(data));
}

}  // namespace

bool onednn_has_vnni() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::isa_default:
    case dnnl::cpu_isa::sse41:
    case dnnl::cpu_isa::avx:
    case dnnl::cpu_isa::avx2:
    case dnnl::cpu_isa::avx512_core:
      return false;
    default:  // avx2_vnni, avx512_core_vnni and what came after them
      return true;
  }
}

int64_t cached_primitives() { return cache().size(); }

bool run_onednn(Place& place, const Product& product, const Pointers& at, const Tensor& like, std::string& name) {
  const auto primitive = cache().get(place, product);
  name = primitive->name;
  if (!primitive->matmul) return false;
  // Scratch memory is torch's, so that two streams never share one.
  const int64_t bytes = static_cast<int64_t>(primitive->scratch.get_size());
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
  std::unordered_map<int, memory> arguments;
  const auto add = [&](int argument, const memory::desc& desc, const void* data) {
    if (data) arguments.emplace(argument, memory_at(desc, place, data));
  };
  add(DNNL_ARG_SRC, primitive->a, at.a);
  add(DNNL_ARG_WEIGHTS, primitive->b, at.b);
  add(DNNL_ARG_BIAS, primitive->bias, at.bias);
  add(DNNL_ARG_DST, primitive->out, at.out);
  add(DNNL_ARG_SCRATCHPAD, primitive->scratch, scratch ? scratch->data_ptr() : nullptr);
  add(DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, primitive->a_scale.desc, at.a_scale);
  add(DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, primitive->b_scale.desc, at.b_scale);
  add(DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_SRC, primitive->a_zero.desc, at.a_zero);
  add(DNNL_ARG_ATTR_ZERO_POINTS | DNNL_ARG_WEIGHTS, primitive->b_zero.desc, at.b_zero);
  primitive->matmul.execute(place.stream, arguments);
  if (place.on_cpu) place.stream.wait();
  return true;
}

}  // namespace qcore_xpu
