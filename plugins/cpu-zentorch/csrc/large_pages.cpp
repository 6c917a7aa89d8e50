// Memory in pages of 2 MiB for packed weights: a decode step reads all of a weight once, and with pages of
// 4 KiB the address translation then costs an eighth of the time.

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "op_support.h"

namespace qcore_cpu {

Tensor new_weight(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t page = int64_t{1} << 21;
  int64_t count = 1;
  for (int64_t side : shape) count *= side;
  const int64_t size = type == ScalarType::Int ? 4 : 1, bytes = count * size;
  if (bytes >= page) {
    // One page more than it takes (of addresses: what is never touched takes no memory), and of that the part
    // that begins with a page. Where the kernel has no such pages, the advice does nothing.
    Tensor memory = torch::stable::new_empty(like, {(bytes + page) / size}, type);
    const auto address = reinterpret_cast<uintptr_t>(memory.data_ptr());
    const int64_t skipped = static_cast<int64_t>(-address & (page - 1));
    auto* begin = static_cast<char*>(memory.data_ptr()) + skipped;
    madvise(begin, static_cast<size_t>(bytes / page * page), MADV_HUGEPAGE);
    return torch::stable::view(torch::stable::narrow(memory, 0, skipped / size, count), shape);
  }
#endif
  return torch::stable::new_empty(like, shape, type);
}

}  // namespace qcore_cpu
