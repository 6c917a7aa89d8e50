// The flags lie in a variable of the library, which the driver clears when it loads it: nothing is allocated, so a
// graph can be captured in the first call.

#include "meeting_flags.h"

#include <map>
#include <mutex>
#include <tuple>

namespace qcore_cuda {
namespace {

constexpr int kUsers = 4096, kMostDevices = 64;

__device__ uint8_t all_flags[kUsers][kMeetingFlags];

struct Device {
  uint8_t* flags = nullptr;
  int used = 0;
};

struct User {
  int32_t device;
  cudaStream_t stream;
  unsigned long long capture;  // 0: none

  bool operator<(const User& other) const {
    return std::tie(device, stream, capture) < std::tie(other.device, other.stream, other.capture);
  }
};

uint8_t* flags_of(const User& user) {
  static std::mutex lock;
  static std::map<User, uint8_t*> known;
  static Device devices[kMostDevices];
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = known.find(user);
  if (found != known.end()) return found->second;
  Device& device = devices[user.device];
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
  User user{device, stream, 0};
  if (cudaStreamGetCaptureInfo(stream, &status, &user.capture) != cudaSuccess) {
    (void)cudaGetLastError();
    return nullptr;
  }
  if (status == cudaStreamCaptureStatusNone) user.capture = 0;
  thread_local User last{-1, nullptr, 0};
  thread_local uint8_t* flags = nullptr;
  if (user < last || last < user) {
    flags = flags_of(user);
    last = user;
  }
  return flags;
}

}  // namespace qcore_cuda
