// Queues, and what belongs to each: oneDNN's engine and stream.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>
#include <oneapi/dnnl/dnnl_sycl.hpp>
#include <string>
#include <sycl/sycl.hpp>

namespace qcore_xpu {

// A queue to put work on. Engines are shared by the queues of one device and context.
struct Place {
  sycl::queue queue;
  dnnl::engine engine;
  dnnl::stream stream;
  int engine_id;
  bool on_cpu;  // SYCL's CPU device: tensors are ordinary memory, and calls end when the work has
};

// The place of the queue at this address (torch's, for tensors on an Intel GPU), or for 0 the one
// of SYCL's CPU device. Places live as long as the process.
Place& place_of(int64_t queue);

// One line for each device that SYCL finds: "gpu: name, driver version".
std::string describe_devices();

}  // namespace qcore_xpu
