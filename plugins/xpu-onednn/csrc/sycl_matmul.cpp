// The product by our own kernel, compiled from source for the device at hand by SYCL's run-time
// compiler (sycl_ext_oneapi_kernel_compiler); once for each device and context of a process.

#include <atomic>
#include <map>
#include <mutex>

#include "matmul.h"
#include "matmul_source.inc"

namespace qcore_xpu {
namespace {

namespace syclexp = sycl::ext::oneapi::experimental;

constexpr size_t kTile = 32, kSide = 16;  // as in the kernel
std::atomic<int64_t> compilations{0};

sycl::kernel compile(const sycl::queue& queue) {
  const auto context = queue.get_context();
  auto device = queue.get_device();
  QCORE_CHECK(device.ext_oneapi_can_build(syclexp::source_language::sycl),
              "qcore_xpu: SYCL cannot compile source for this device; is libsycl-jit.so (package intel-sycl-rt) there?");
  std::string log;
  try {
    auto source = syclexp::create_kernel_bundle_from_source(
        context, syclexp::source_language::sycl, std::string(kMatmulSource),
        syclexp::properties{syclexp::include_files{"matmul_types.h", std::string(kMatmulTypes)}});
    auto built = syclexp::build(source, {device}, syclexp::properties{syclexp::save_log{&log}});
    ++compilations;
    return built.ext_oneapi_get_kernel("qcore_matmul");
  } catch (const sycl::exception& error) {
    fail("qcore_xpu: SYCL's run-time compiler refuses the kernel: ", error.what(), " ", log);
  }
}

sycl::kernel& kernel_of(const Place& place) {
  static std::mutex mutex;
  static auto* kernels = new std::map<int, sycl::kernel>;  // by engine: one for each device and context
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = kernels->find(place.engine_id);
  if (found != kernels->end()) return found->second;
  return kernels->emplace(place.engine_id, compile(place.queue)).first->second;
}

}  // namespace

int64_t compiled_kernels() { return compilations; }

void run_sycl(Place& place, const Product& product, const Pointers& at) {
  const sycl::kernel& kernel = kernel_of(place);
  const auto groups = [](int64_t size) { return (static_cast<size_t>(size) + kTile - 1) / kTile * kSide; };
  const auto event = place.queue.submit([&](sycl::handler& handler) {
    handler.set_args(at.a, at.a_scale, at.a_zero, at.b, at.b_scale, at.b_zero, at.bias, at.out, product);
    handler.parallel_for(sycl::nd_range<2>({groups(product.m), groups(product.n)}, {kSide, kSide}), kernel);
  });
  if (place.on_cpu) const_cast<sycl::event&>(event).wait();
}

}  // namespace qcore_xpu
