#include "devices.h"

#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "op_support.h"

namespace qcore_xpu {
namespace {

struct SharedEngine {
  sycl::device device;
  sycl::context context;
  dnnl::engine engine;
};

// Never destroyed: at exit the order in which libraries go is not known.
auto& engines() {
  static auto* all = new std::vector<SharedEngine>;
  return *all;
}

// Asks the types of device one at a time: get_devices() and queue() prefer a GPU, or throw.
sycl::queue cpu_queue() {
  const auto devices = sycl::device::get_devices(sycl::info::device_type::cpu);
  QCORE_CHECK(!devices.empty(),
              "qcore_xpu: SYCL finds no CPU device; OCL_ICD_FILENAMES must name libintelocl.so (package "
              "intel-opencl-rt) before SYCL is first used");
  return sycl::queue(devices.front(), sycl::property::queue::in_order());
}

std::unique_ptr<Place> make_place(sycl::queue queue) {
  const auto device = queue.get_device();
  const auto context = queue.get_context();
  int id = 0;
  for (const auto& shared : engines()) {
    if (shared.device == device && shared.context == context) break;
    ++id;
  }
  if (id == static_cast<int>(engines().size())) {
    engines().push_back({device, context, dnnl::sycl_interop::make_engine(device, context)});
  }
  const dnnl::engine& engine = engines()[id].engine;
  return std::make_unique<Place>(
      Place{queue, engine, dnnl::sycl_interop::make_stream(engine, queue), id, device.is_cpu()});
}

}  // namespace

Place& place_of(int64_t address) {
  static std::mutex mutex;
  static auto* places = new std::unordered_map<sycl::queue, std::unique_ptr<Place>>;
  static auto* own = new std::unique_ptr<Place>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (address == 0) {
    if (!*own) *own = make_place(cpu_queue());
    return **own;
  }
  const auto& queue = *reinterpret_cast<const sycl::queue*>(address);
  auto& place = (*places)[queue];
  if (!place) place = make_place(queue);
  return *place;
}

std::string describe_devices() {
  std::string text;
  for (const auto& platform : sycl::platform::get_platforms()) {
    for (const auto& device : platform.get_devices()) {
      text += std::string(text.empty() ? "" : "\n") + (device.is_gpu() ? "gpu" : device.is_cpu() ? "cpu" : "other") +
              ": " + device.get_info<sycl::info::device::name>() + ", driver " +
              device.get_info<sycl::info::device::driver_version>();
    }
  }
  return text;
}

}  // namespace qcore_xpu
