// What the kernels need of a machine, once for each of three: HIP (clang, device code only, no headers
// of ROCm), CUDA (nvcc) and an executor on the CPU (g++, cpu_executor.h of the tests).
#pragma once

#include <stddef.h>
#include <stdint.h>

// ---- HIP ---------------------------------------------------------------------------------------
#if defined(__HIP__) || defined(__AMDGCN__)
#define QCORE_DEVICE __attribute__((device)) inline __attribute__((always_inline))
#define QCORE_SHARED __attribute__((shared))
#define QCORE_UNROLL _Pragma("unroll")
#define QCORE_KERNEL(NAME, ARGS, VARIABLE)                                                     \
  extern "C" __attribute__((global, used, amdgpu_flat_work_group_size(kThreads, kThreads)))    \
  void NAME(ARGS VARIABLE)

#if defined(__gfx1201__)
constexpr int kWave = 32;
#else
constexpr int kWave = 64;
#endif
#if defined(__gfx942__)
constexpr bool kFnuz = true;  // 8-bit floats: e4m3fnuz
#else
constexpr bool kFnuz = false;  // e4m3fn of the OCP standard
#endif

QCORE_DEVICE int thread_index() { return __builtin_amdgcn_workitem_id_x(); }
QCORE_DEVICE int block_x() { return __builtin_amdgcn_workgroup_id_x(); }
QCORE_DEVICE int block_y() { return __builtin_amdgcn_workgroup_id_y(); }

QCORE_DEVICE void sync_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// The value that another lane of the wave gives here.
QCORE_DEVICE uint32_t of_lane(uint32_t value, int lane) {
  return __builtin_amdgcn_ds_bpermute(lane * 4, value);
}

QCORE_DEVICE float from_f16(uint16_t bits) { return __builtin_bit_cast(_Float16, bits); }
QCORE_DEVICE uint16_t to_f16(float value) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
}

// ---- CUDA --------------------------------------------------------------------------------------
#elif defined(__CUDACC__)
#include <cuda_fp16.h>
#define QCORE_DEVICE __device__ __forceinline__
#define QCORE_SHARED __shared__
#define QCORE_UNROLL
#define QCORE_KERNEL(NAME, ARGS, VARIABLE) \
  extern "C" __global__ void __launch_bounds__(kThreads) NAME(ARGS VARIABLE)

constexpr int kWave = 32;
constexpr bool kFnuz = false;

QCORE_DEVICE int thread_index() { return threadIdx.x; }
QCORE_DEVICE int block_x() { return blockIdx.x; }
QCORE_DEVICE int block_y() { return blockIdx.y; }
QCORE_DEVICE void sync_block() { __syncthreads(); }
QCORE_DEVICE uint32_t of_lane(uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

QCORE_DEVICE float from_f16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
QCORE_DEVICE uint16_t to_f16(float value) { return __half_as_ushort(__float2half_rn(value)); }

// ---- CPU ---------------------------------------------------------------------------------------
#else
#include "cpu_executor.h"
#endif

// ---- all three ---------------------------------------------------------------------------------
constexpr int kWaves = 4;  // in a block
constexpr int kThreads = kWaves * kWave;

template <typename To, typename From>
QCORE_DEVICE To bits_of(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "as many bytes");
  To to;
  __builtin_memcpy(&to, &value, sizeof(To));
  return to;
}

template <int BYTES>
struct alignas(BYTES) Bytes {
#if defined(__HIP__) || defined(__AMDGCN__)
  uint32_t words __attribute__((ext_vector_type(BYTES / 4)));  // arrays would go to memory
#else
  uint32_t words[BYTES / 4];
#endif
};

QCORE_DEVICE int lane_index() { return thread_index() % kWave; }
QCORE_DEVICE int wave_index() { return thread_index() / kWave; }

QCORE_DEVICE float from_bf16(uint16_t bits) {
  return bits_of<float>(static_cast<uint32_t>(bits) << 16);
}

QCORE_DEVICE uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The types of the tensors that a kernel reads and writes; the numbers are those of launching.py.
enum FloatType : int32_t { kF32 = 0, kF16 = 1, kBf16 = 2 };

QCORE_DEVICE float load_float(const void* data, size_t index, int32_t type) {
  if (type == kF16) return from_f16(static_cast<const uint16_t*>(data)[index]);
  if (type == kBf16) return from_bf16(static_cast<const uint16_t*>(data)[index]);
  return static_cast<const float*>(data)[index];
}

QCORE_DEVICE void store_float(void* data, size_t index, int32_t type, float value) {
  if (type == kF16) {
    static_cast<uint16_t*>(data)[index] = to_f16(value);
  } else if (type == kBf16) {
    static_cast<uint16_t*>(data)[index] = to_bf16(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}
