// Flags by which blocks of a launch wait for each other.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace qcore_cuda {

constexpr int kMeetingFlags = 576;  // four for each processor of the largest SM90: warpgroups of two blocks

// So many flags in the device's memory, for the next launch on this stream. They are zero before it, and it leaves them
// zero. Launches that may run at the same time have different ones: each stream has its own, and so has each stream
// of each graph that is being captured. Null where there are none left, or it can't be told what runs at the
// same time; such a launch must do without.
uint8_t* meeting_flags(int32_t device, cudaStream_t stream);

}  // namespace qcore_cuda
