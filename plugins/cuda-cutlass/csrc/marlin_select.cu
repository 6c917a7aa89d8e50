#include "marlin_select.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

#include "marlin/params.h"
#include "op_support.h"

namespace qcore_cuda {
namespace {

#include "kernel_selector.h"  // kTiles, kRowsOfEight, kSlots, kSchemes, kKernels

constexpr int kConfigs = sizeof(kTiles) / sizeof(kTiles[0]);
constexpr int kHeights = sizeof(kRowsOfEight) / sizeof(kRowsOfEight[0]);

// Kernels loaded at run time.
std::mutex added_mutex;
std::map<std::pair<int64_t, int>, const void*>& added_kernels() {
  static std::map<std::pair<int64_t, int>, const void*> kernels;
  return kernels;
}

const void* function_of(int64_t key, int slot) {
  const SchemeKernels* end = kKernels + kSchemes;
  const SchemeKernels* found =
      std::lower_bound(kKernels, end, key, [](const SchemeKernels& row, int64_t wanted) { return row.key < wanted; });
  if (found != end && found->key == key && found->kernels[slot]) return found->kernels[slot];
  const std::lock_guard<std::mutex> lock(added_mutex);
  const auto added = added_kernels().find({key, slot});
  return added == added_kernels().end() ? nullptr : added->second;
}

int shared_of(const MarlinScheme& s, int family, int height, int config) {
  const bool wide = s.act == qcore_marlin::kF16 || s.act == qcore_marlin::kBF16;
  const bool four = s.weight == qcore_marlin::kU4 || s.weight == qcore_marlin::kU4B8 || s.weight == qcore_marlin::kE2m1;
  const bool zeros = s.weight == qcore_marlin::kU4 || s.weight == qcore_marlin::kU8;
  return qcore_marlin::SharedSizes(wide ? 2 : 1, four ? 4 : 8, s.scale == qcore_marlin::kOwnScale ? 2 : 1, s.group_blocks,
                                   !zeros ? 0 : s.float_zeros ? 2 : 1, kRowsOfEight[height], kTiles[config][0],
                                   kTiles[config][1], kTiles[config][2], family == 75 ? 2 : 4)
      .all();
}

int attribute(cudaDeviceAttr which, int32_t device) {
  int value = 0;
  QCORE_CHECK(cudaDeviceGetAttribute(&value, which, device) == cudaSuccess, "marlin: the driver says nothing about cuda:", device);
  return value;
}

// Tiles in the order in which they are wanted: 256 threads, then whatever there is.
void order_of_configs(int height, int64_t n, int (&order)[kConfigs]) {
  const int wide = kRowsOfEight[height] <= 2 ? 0 : 1;
  const int first = n <= 64 ? 3 : n <= 128 && wide == 1 ? 2 : wide;
  order[0] = first;
  for (int i = 0, at = 1; i < kConfigs; ++i) {
    if (i != first) order[at++] = i;
  }
}

MarlinKernel prepare(const MarlinScheme& scheme, int32_t device, int64_t m, int64_t n) {
  const int capability = device_facts(device).capability;
  const int64_t key = scheme.key(capability);
  MarlinKernel none{nullptr, 0, 0, 0, 0, 0, 0};
  if (key < 0) return none;
  const int family = capability < 80 ? 75 : 80;
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  int height = 0;
  while (height + 1 < kHeights && 8 * kRowsOfEight[height] < m) ++height;
  for (; height >= 0; --height) {
    int order[kConfigs];
    order_of_configs(height, n, order);
    for (const int config : order) {
      const void* function = function_of(key, height * kConfigs + config);
      const int shared = shared_of(scheme, family, height, config);
      if (!function || shared > most) continue;
      MarlinKernel kernel{function, 8 * kRowsOfEight[height], kTiles[config][1], kTiles[config][0], kTiles[config][2], shared, 0};
      cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
      if (error == cudaSuccess) {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&kernel.blocks, function, kernel.threads, shared);
      }
      QCORE_CHECK(error == cudaSuccess && kernel.blocks > 0, "marlin: a kernel does not fit: ", cudaGetErrorString(error));
      return kernel;
    }
  }
  // Kernels of 8-bit activations have sixteen rows at least.
  return none;
}

}  // namespace

int64_t MarlinScheme::key(int capability) const {
  if (capability < 75) return -1;
  const bool fp8 = act == qcore_marlin::kActE4m3;
  if (fp8 && capability < 89) return -1;
  int group = 0;
  switch (group_blocks) {
    case -1: group = 0; break;
    case 0: group = 1; break;
    case 1: group = 2; break;
    case 2: group = 3; break;
    case 4: group = 4; break;
    case 8: group = 5; break;
    default: return -1;
  }
  int64_t key = fp8 ? 2 : capability >= 80 ? 1 : 0;
  key = key << 2 | act;
  key = key << 3 | weight;
  key = key << 2 | scale;
  key = key << 1 | (bf16_out ? 1 : 0);
  key = key << 3 | group;
  return key << 1 | (float_zeros ? 1 : 0);
}

const MarlinKernel* find_marlin_kernel(const MarlinScheme& scheme, int32_t device, int64_t m, int64_t n) {
  // All that the choice depends on, in one number; found kernels are kept by thread, so no lock is taken.
  static thread_local std::unordered_map<uint64_t, MarlinKernel> known;
  const int64_t key = scheme.key(device_facts(device).capability);
  if (key < 0) return nullptr;
  const uint64_t height = static_cast<uint64_t>(std::min<int64_t>((m + 7) / 8, 8));
  const uint64_t width = n <= 64 ? 0 : n <= 128 ? 1 : 2;
  const uint64_t name = static_cast<uint64_t>(key) << 16 | static_cast<uint64_t>(device) << 8 | height << 2 | width;
  const auto found = known.find(name);
  if (found != known.end()) return &found->second;
  const int64_t rows = scheme.act >= qcore_marlin::kS8 ? std::max<int64_t>(m, 9) : m;
  const MarlinKernel kernel = prepare(scheme, device, rows, n);
  if (!kernel.function) return nullptr;  // it may yet be loaded
  return &known.emplace(name, kernel).first->second;
}

namespace {

// Whether the kernel is there, compiled in or loaded.
bool marlin_has_kernel(int64_t key, int64_t slot) {
  QCORE_CHECK(slot >= 0 && slot < kSlots, "marlin_has_kernel: slot is ", slot, "; there are ", kSlots);
  return function_of(key, static_cast<int>(slot)) != nullptr;
}

// Loads a kernel of a file that nvcc or NVRTC has made. Libraries stay loaded.
void marlin_load_kernel(int64_t key, int64_t slot, std::string path, std::string name) {
  QCORE_CHECK(slot >= 0 && slot < kSlots, "marlin_load_kernel: slot is ", slot, "; there are ", kSlots);
  static std::map<std::string, cudaLibrary_t> libraries;
  const std::lock_guard<std::mutex> lock(added_mutex);
  auto library = libraries.find(path);
  if (library == libraries.end()) {
    cudaLibrary_t loaded = nullptr;
    const cudaError_t error = cudaLibraryLoadFromFile(&loaded, path.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0);
    QCORE_CHECK(error == cudaSuccess, "marlin_load_kernel: ", path, ": ", cudaGetErrorString(error));
    library = libraries.emplace(path, loaded).first;
  }
  cudaKernel_t kernel = nullptr;
  const cudaError_t error = cudaLibraryGetKernel(&kernel, library->second, name.c_str());
  QCORE_CHECK(error == cudaSuccess, "marlin_load_kernel: ", path, " has no kernel ", name, ": ", cudaGetErrorString(error));
  added_kernels()[{key, static_cast<int>(slot)}] = reinterpret_cast<const void*>(kernel);
}

}  // namespace
}  // namespace qcore_cuda

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cuda, m) {
  m.def("marlin_has_kernel(int key, int slot) -> bool");
  m.def("marlin_load_kernel(int key, int slot, str path, str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qcore_cuda, CompositeExplicitAutograd, m) {
  m.impl("marlin_has_kernel", TORCH_BOX(&qcore_cuda::marlin_has_kernel));
  m.impl("marlin_load_kernel", TORCH_BOX(&qcore_cuda::marlin_load_kernel));
}
