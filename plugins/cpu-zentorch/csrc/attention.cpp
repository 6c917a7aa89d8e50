// one_query_attention: softmax(query . keys * scale) . values for the one token of a decoding step, without a
// mask; several query heads may share a head of keys and values.

#include "op_support.h"

namespace qcore_cpu {
namespace {

constexpr const char* kOp = "one_query_attention";

void check_cached(const char* name, const Tensor& t, const Tensor& query, int64_t heads, int64_t length) {
  check_dtype(kOp, name, t, query.scalar_type());
  QCORE_CHECK(t.dim() == 4 && t.size(0) == 1 && t.size(1) == heads && t.size(2) == length &&
                  t.size(3) == query.size(3) && t.stride(3) == 1,
              kOp, ": ", name, " has shape ", shape_of(t), "; it must be [1, heads, length, ", query.size(3),
              "], with the same heads and length as the other, and the last dimension dense");
}

Tensor one_query_attention(const Tensor& query, const Tensor& keys, const Tensor& values, double scale) {
  const Dtype dtype = float_dtype(kOp, "query", query);
  QCORE_CHECK(query.dim() == 4 && query.size(0) == 1 && query.size(2) == 1, kOp, ": query has shape ",
              shape_of(query), "; it must be [1, heads, 1, size]");
  const int64_t heads = query.size(1), size = query.size(3);
  QCORE_CHECK(size >= 16 && size % 16 == 0, kOp, ": the size of a head is ", size,
              "; it must be a multiple of 16");
  QCORE_CHECK(keys.dim() == 4 && keys.size(1) >= 1 && keys.size(2) >= 1, kOp, ": keys has shape ",
              shape_of(keys), "; it must be [1, heads, length, ", size, "]");
  const int64_t shared = keys.size(1), length = keys.size(2);
  QCORE_CHECK(heads >= 1 && heads % shared == 0, kOp, ": query has ", heads, " heads and keys has ", shared,
              "; it must be a multiple");
  check_cached("keys", keys, query, shared, length);
  check_cached("values", values, query, shared, length);
  const Tensor dense = query.is_contiguous() ? query : torch::stable::contiguous(query);
  Tensor out = new_output(query, size, query.scalar_type());

  // Heads that share keys are taken together, but for those that another thread can take.
  const int64_t group = heads / shared, threads = torch::stable::get_num_threads();
  int64_t together = kAttentionHeads;
  while (together > 1 && shared * ceil_div(group, together) < threads) together /= 2;
  const int64_t parts = ceil_div(group, together);
  const int64_t unit = element_size(dtype);
  const auto attend = active_isa().attend;
  torch::stable::parallel_for(0, shared * parts, grain(kBytesPerThread, 2 * length * size * unit),
                              [&](int64_t begin, int64_t end) {
    thread_local Workspace workspace;
    float* space = reinterpret_cast<float*>(workspace.reserve(together * (size + length) * 4));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / parts, first = head * group + i % parts * together;
      Attention a{};
      a.dtype = dtype;
      a.heads = static_cast<int>(std::min(together, (head + 1) * group - first));
      a.size = size;
      a.length = length;
      a.scale = static_cast<float>(scale);
      a.query = static_cast<const char*>(dense.data_ptr()) + first * size * unit;
      a.query_stride = size;
      a.keys = static_cast<const char*>(keys.data_ptr()) + head * keys.stride(1) * unit;
      a.key_stride = keys.stride(2);
      a.values = static_cast<const char*>(values.data_ptr()) + head * values.stride(1) * unit;
      a.value_stride = values.stride(2);
      a.out = static_cast<char*>(out.data_ptr()) + first * size * unit;
      attend(a, space);
    }
  });
  return out;
}

}  // namespace
}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def("one_query_attention(Tensor query, Tensor keys, Tensor values, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CPU, m) {
  m.impl("one_query_attention", TORCH_BOX(&qcore_cpu::one_query_attention));
}
