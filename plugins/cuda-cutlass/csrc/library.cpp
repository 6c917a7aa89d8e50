// What belongs to the library as a whole: the architectures compiled, streams, facts of devices.

#include <dlfcn.h>

#include <array>
#include <mutex>

#include "op_support.h"

namespace qcore_cuda {
namespace {

using GetCurrentStream = AOTITorchError (*)(int32_t, void**);

GetCurrentStream find_get_current_stream() {
  // torch loads its libraries without making their symbols global; by its name one gets at the one
  // that is loaded already, and at nothing else.
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  return library ? reinterpret_cast<GetCurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                 : nullptr;
}

std::string portable_archs() { return QCORE_CUDA_PORTABLE_ARCHS; }
std::string specific_archs() { return QCORE_CUDA_SPECIFIC_ARCHS; }

// The driver's newest CUDA version, as 13000 for 13.0; 0 where there is no driver.
int64_t driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace

cudaStream_t Launch::current_stream(int32_t device) {
  static const GetCurrentStream get = find_get_current_stream();
  QCORE_CHECK(get != nullptr, "qcore_cuda: this torch is built without CUDA");
  void* stream = nullptr;
  QCORE_CHECK(get(device, &stream) == AOTI_TORCH_SUCCESS, "qcore_cuda: torch has no current stream for cuda:",
                  device);
  return static_cast<cudaStream_t>(stream);
}

const DeviceFacts& device_facts(int32_t device) {
  constexpr int kMost = 64;
  static std::array<DeviceFacts, kMost> facts;
  static std::array<std::once_flag, kMost> once;
  QCORE_CHECK(device >= 0 && device < kMost, "qcore_cuda: no device cuda:", device);
  std::call_once(once[device], [device] {
    int major = 0, minor = 0, count = 0, shared = 0;
    const bool known =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
    QCORE_CHECK(known, "qcore_cuda: the driver says nothing about cuda:", device);
    const torch::stable::accelerator::DeviceGuard guard(device);
    facts[device] = {major * 10 + minor, count, shared, major >= 9 && compiled_for_sm90_or_later()};
  });
  return facts[device];
}

}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("portable_archs() -> str");
  m.def("specific_archs() -> str");
  m.def("driver_version() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CompositeExplicitAutograd, m) {
  m.impl("portable_archs", TORCH_BOX(&qcore_cuda::portable_archs));
  m.impl("specific_archs", TORCH_BOX(&qcore_cuda::specific_archs));
  m.impl("driver_version", TORCH_BOX(&qcore_cuda::driver_version));
}
