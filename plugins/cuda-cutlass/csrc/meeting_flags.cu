// The flags lie in a variable of the library, which the driver clears when it loads it: nothing is allocated, so a
// graph can be captured in the first call.

#include "meeting_flags.h"

#include <array>
#include <map>
#include <mutex>

#include "remembered.h"

namespace qcore_cuda {
namespace {

constexpr int kUsers = 4096, kMostDevices = 64;

__device__ uint8_t all_flags[kUsers][kMeetingFlags];

struct Device {
  uint8_t* flags = nullptr;
  int used = 0;
};

using User = std::array<int64_t, 3>;  // device, stream, the graph that is being captured (0: none)

uint8_t* flags_of(const User& user) {
  static std::mutex lock;
  static std::map<User, uint8_t*> known;
  static Device devices[kMostDevices];
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = known.find(user);
  if (found != known.end()) return found->second;
  Device& device = devices[user[0]];
  if (!device.flags) {
    void* address = nullptr;
    if (cudaGetSymbolAddress(&address, all_flags) != cudaSuccess) {
      (void)cudaGetLastError();
      return nullptr;
    }
    device.flags = static_cast<uint8_t*>(address);
  }
  if (device.used == kUsers) return nullptr;
  return known[user] = device.flags + kMeetingFlags * device.used++;
}

}  // namespace

uint8_t* meeting_flags(int32_t device, cudaStream_t stream) {
  if (device >= kMostDevices || stream == cudaStreamPerThread) return nullptr;  // one name, many streams
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  if (cudaStreamGetCaptureInfo(stream, &status, &capture) != cudaSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  if (status == cudaStreamCaptureStatusNone) capture = 0;
  const User user{device, reinterpret_cast<intptr_t>(stream), static_cast<int64_t>(capture)};
  return remembered(user, [&] { return flags_of(user); });
}

}  // namespace qcore_cuda
