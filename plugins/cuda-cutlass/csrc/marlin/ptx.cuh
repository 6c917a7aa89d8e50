// The instructions that the kernel is made of, each one function. Nothing is included, so that NVRTC needs
// no folder of headers; tests put emulations in the place of this file.
#pragma once

#ifdef QCORE_MARLIN_EMULATED
#include "marlin_emulation.h"
#else

namespace qcore_marlin {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

#define MARLIN_DEVICE __device__ __forceinline__

struct alignas(16) Quad {
  u32 x, y, z, w;
};
struct alignas(16) FloatQuad {
  float x, y, z, w;
};

MARLIN_DEVICE int thread_index() { return threadIdx.x; }
MARLIN_DEVICE int block_index() { return blockIdx.x; }
MARLIN_DEVICE int block_count() { return gridDim.x; }
MARLIN_DEVICE void block_sync() { __syncthreads(); }
MARLIN_DEVICE void fence() { __threadfence(); }
MARLIN_DEVICE int add_one(int* counter) { return atomicAdd(counter, 1); }
MARLIN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
MARLIN_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// Past the first-level cache: what other blocks have written.
MARLIN_DEVICE FloatQuad load_shared_by_blocks(const float* p) {
  FloatQuad v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
  return v;
}

// ---- copies from global to shared memory ---------------------------------------------------------
// `bytes` of 16 are copied, the rest are zeros. Under SM80 by way of registers, at once.
template <int FAMILY>
MARLIN_DEVICE void copy16(char* to, const char* from, int bytes) {
  if constexpr (FAMILY >= 80) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    Quad v{0, 0, 0, 0};
    if (bytes == 16) {
      v = *reinterpret_cast<const Quad*>(from);
    } else {
      char* piece = reinterpret_cast<char*>(&v);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (i < bytes) piece[i] = from[i];
      }
    }
    *reinterpret_cast<Quad*>(to) = v;
  }
}
template <int FAMILY>
MARLIN_DEVICE void copies_issued() {
  if constexpr (FAMILY >= 80) asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int FAMILY, int PENDING>
MARLIN_DEVICE void wait_for_copies() {
  if constexpr (FAMILY >= 80) asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- bits ----------------------------------------------------------------------------------------
template <int TABLE>
MARLIN_DEVICE u32 lop3(u32 a, u32 b, u32 c) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(v) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return v;
}
MARLIN_DEVICE u32 permute(u32 a, u32 b, u32 selector) {
  u32 v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(selector));
  return v;
}
MARLIN_DEVICE float bits_to_float(u32 v) { return __uint_as_float(v); }
MARLIN_DEVICE u32 float_to_bits(float v) { return __float_as_uint(v); }

// ---- numbers of 16 bits, in pairs ----------------------------------------------------------------
template <bool BF16>
MARLIN_DEVICE u32 fma2(u32 a, u32 b, u32 c) {
  u32 v;
  if constexpr (BF16) asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  else asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
template <bool BF16>
MARLIN_DEVICE u32 mul2(u32 a, u32 b) {
  if constexpr (BF16) return fma2<true>(a, b, 0x80008000u);  // SM80 has no other
  u32 v;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
template <bool BF16>
MARLIN_DEVICE u32 add2(u32 a, u32 b) {
  if constexpr (BF16) return fma2<true>(a, 0x3f803f80u, b);
  u32 v;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
// The float in the low 16 bits.
template <bool BF16>
MARLIN_DEVICE float widen(u32 v) {
  if constexpr (BF16) return __uint_as_float(v << 16);
  float f;
  asm("{.reg .b16 h; .reg .b16 none; mov.b32 {h, none}, %1; cvt.f32.f16 %0, h;}" : "=f"(f) : "r"(v));
  return f;
}
template <bool BF16>
MARLIN_DEVICE u32 narrow2(float low, float high) {
  u32 v;
  if constexpr (BF16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  else asm("{.reg .b16 l; .reg .b16 h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
           : "=r"(v) : "f"(low), "f"(high));
  return v;
}

// ---- matrices ------------------------------------------------------------------------------------
MARLIN_DEVICE void load_matrices4(u32* to, const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(from)) : "memory");
}
MARLIN_DEVICE void load_matrices2(u32* to, const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(from)) : "memory");
}

#define MARLIN_MMA(SHAPE_AND_TYPES)                                                                    \
  asm("mma.sync.aligned." SHAPE_AND_TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"     \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]))

// d [16, 8] += w [16, 32 bytes] * x [32 bytes, 8], float32 sums.
template <int FAMILY, int ACT>
MARLIN_DEVICE void multiply(float* d, const u32* w, const u32* x) {
  if constexpr (ACT == 1) {
    MARLIN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (ACT == 3) {
    MARLIN_MMA("m16n8k32.row.col.f32.e4m3.e4m3.f32");
  } else if constexpr (FAMILY >= 80) {
    MARLIN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(w[2 * i]), "r"(w[2 * i + 1]), "r"(x[i]));
    }
  }
}
// The same of int8, int32 sums.
template <int FAMILY>
MARLIN_DEVICE void multiply(int* d, const u32* w, const u32* x) {
  if constexpr (FAMILY >= 80) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x[0]), "r"(x[1]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // eight outputs and sixteen inputs at a time
      const int half = i % 2 * 2;
      asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
          : "+r"(d[half]), "+r"(d[half + 1]) : "r"(w[i]), "r"(x[i / 2]));
    }
  }
}
#undef MARLIN_MMA

}  // namespace qcore_marlin

#endif
