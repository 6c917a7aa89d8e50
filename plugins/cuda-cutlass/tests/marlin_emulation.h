// csrc/marlin/ptx.cuh for a processor without a GPU: every thread of a block is a fiber, warps meet at
// ldmatrix and mma, blocks run one after another. Copies to shared memory happen as late as the kernel
// allows, so that a wait that is missing shows.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define MARLIN_DEVICE inline

namespace qcore_marlin {

using u8 = unsigned char;
using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(16) Quad {
  u32 x, y, z, w;
};
struct alignas(16) FloatQuad {
  float x, y, z, w;
};

namespace emulation {

struct Copy {
  char* to;
  const char* from;
  int bytes;
};

struct Meeting {  // of a warp, or of the block
  int arrived = 0, generation = 0;
  void* arguments[32];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  std::vector<char> memory;
  ucontext_t scheduler;
  int current = 0, index = 0, count = 0;
  std::function<void()> body;
};

inline Block* block = nullptr;

inline void yield() { swapcontext(&block->fibers[block->current].context, &block->scheduler); }

inline void meet(Meeting& meeting, int of, const std::function<void()>& last) {
  const int generation = meeting.generation;
  if (++meeting.arrived == of) {
    if (last) last();
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  while (meeting.generation == generation) yield();
}

template <class Arguments>
void with_warp(Arguments& mine, void (*together)(Arguments* const*)) {
  Meeting& meeting = block->warps[block->current / 32];
  meeting.arguments[block->current % 32] = &mine;
  meet(meeting, 32, [&] { together(reinterpret_cast<Arguments**>(meeting.arguments)); });
}

inline void entry() {
  Fiber& fiber = block->fibers[block->current];
  block->body();
  fiber.done = true;
  yield();
}

// Blocks in the order `order` (0: rising, 1: falling).
inline void launch(int threads, int bytes, int blocks, int order, std::function<void()> body) {
  for (int i = 0; i < blocks; ++i) {
    Block b;
    b.index = order ? blocks - 1 - i : i;
    b.count = blocks;
    b.memory.assign(bytes + 128, static_cast<char>(0x7f));  // NaN where nothing was copied
    b.fibers.resize(threads);
    b.warps.resize(threads / 32);
    b.body = body;
    block = &b;
    for (Fiber& fiber : b.fibers) {
      constexpr size_t kStack = 128 << 10;
      fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, entry, 0);
    }
    bool running = true;
    while (running) {
      running = false;
      for (int t = 0; t < threads; ++t) {
        if (b.fibers[t].done) continue;
        running = true;
        b.current = t;
        swapcontext(&b.scheduler, &b.fibers[t].context);
      }
    }
    block = nullptr;
  }
}

inline float half_to_float(uint16_t h) {
  _Float16 v;
  std::memcpy(&v, &h, 2);
  return v;
}
inline uint16_t to_half(double v) {
  const _Float16 h = static_cast<_Float16>(v);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
inline float bfloat_to_float(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint16_t to_bfloat(double d) {
  const float v = static_cast<float>(d);
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <bool BF16>
float number(uint16_t v) {
  return BF16 ? bfloat_to_float(v) : half_to_float(v);
}
inline float e4m3(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  const float size = (v & 0x7f) == 0x7f ? NAN
                     : exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(float(mantissa), -9);
  return v & 0x80 ? -size : size;
}

// The numbers of a 32-bit register in ACT's format.
template <int ACT>
double element(u32 reg, int i) {
  if (ACT == 0) return half_to_float(static_cast<uint16_t>(reg >> (16 * i)));
  if (ACT == 1) return bfloat_to_float(static_cast<uint16_t>(reg >> (16 * i)));
  if (ACT == 2) return static_cast<int8_t>(reg >> (8 * i));
  return e4m3(static_cast<uint8_t>(reg >> (8 * i)));
}

template <class Number>
struct Product {
  Number* d;
  const u32 *w, *x;
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16" and "m16n8k32".
template <int ACT, class Number>
void product(Product<Number>* const* lanes) {
  constexpr int PER = ACT < 2 ? 2 : 4, K = 8 * PER;
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = 0;
      for (int k = 0; k < K; ++k) {
        const int high = k / (K / 2), in = k % (K / 2);
        const auto& of_w = *lanes[row % 8 * 4 + in / PER];
        const auto& of_x = *lanes[column * 4 + in / PER];
        sum += element<ACT>(of_w.w[2 * high + row / 8], in % PER) * element<ACT>(of_x.x[high], in % PER);
      }
      Number& d = lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2];
      d = static_cast<Number>(d + sum);
    }
  }
}

struct Load {
  const char* from;
  u32* to;
};
template <int COUNT>
void matrices(Load* const* lanes) {
  for (int i = 0; i < COUNT; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      std::memcpy(lanes[lane]->to + i, lanes[8 * i + lane / 4]->from + lane % 4 * 4, 4);
    }
  }
}

}  // namespace emulation

inline int thread_index() { return emulation::block->current; }
inline int block_index() { return emulation::block->index; }
inline int block_count() { return emulation::block->count; }
inline void block_sync() {
  emulation::meet(emulation::block->all, static_cast<int>(emulation::block->fibers.size()), nullptr);
}
inline void fence() {}
inline int add_one(int* counter) { return (*counter)++; }
inline char* shared_memory() {
  const auto at = reinterpret_cast<uintptr_t>(emulation::block->memory.data());
  return reinterpret_cast<char*>((at + 127) / 128 * 128);
}
inline FloatQuad load_shared_by_blocks(const float* p) { return *reinterpret_cast<const FloatQuad*>(p); }

template <int FAMILY>
void copy16(char* to, const char* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16)) std::abort();
  const emulation::Copy copy{to, from, bytes};
  if (FAMILY >= 80) {
    emulation::block->fibers[thread_index()].open.push_back(copy);
  } else {
    std::memset(to, 0, 16);
    if (bytes) std::memcpy(to, from, bytes);
  }
}
template <int FAMILY>
void copies_issued() {
  auto& fiber = emulation::block->fibers[thread_index()];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int FAMILY, int PENDING>
void wait_for_copies() {
  auto& groups = emulation::block->fibers[thread_index()].groups;
  while (groups.size() > PENDING) {
    for (const auto& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.bytes) std::memcpy(copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

template <int TABLE>
u32 lop3(u32 a, u32 b, u32 c) {
  u32 v = 0;
  for (int i = 0; i < 32; ++i) v |= static_cast<u32>(TABLE >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
  return v;
}
inline u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = a | static_cast<u64>(b) << 32;
  u32 v = 0;
  for (int i = 0; i < 4; ++i) v |= static_cast<u32>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return v;
}
inline float bits_to_float(u32 v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline u32 float_to_bits(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
template <bool BF16>
u32 fma2(u32 a, u32 b, u32 c) {
  u32 v = 0;
  for (int i = 0; i < 32; i += 16) {
    const auto part = [i](u32 x) { return static_cast<double>(emulation::number<BF16>(static_cast<uint16_t>(x >> i))); };
    const double exact = part(a) * part(b) + part(c);
    v |= static_cast<u32>(BF16 ? emulation::to_bfloat(exact) : emulation::to_half(exact)) << i;
  }
  return v;
}
template <bool BF16>
u32 mul2(u32 a, u32 b) {
  return fma2<BF16>(a, b, 0x80008000u);
}
template <bool BF16>
u32 add2(u32 a, u32 b) {
  return fma2<BF16>(a, BF16 ? 0x3f803f80u : 0x3c003c00u, b);
}
template <bool BF16>
float widen(u32 v) {
  return emulation::number<BF16>(static_cast<uint16_t>(v));
}
template <bool BF16>
u32 narrow2(float low, float high) {
  if (BF16) return emulation::to_bfloat(low) | static_cast<u32>(emulation::to_bfloat(high)) << 16;
  return emulation::to_half(low) | static_cast<u32>(emulation::to_half(high)) << 16;
}

inline void load_matrices4(u32* to, const char* from) {
  emulation::Load mine{from, to};
  emulation::with_warp<emulation::Load>(mine, emulation::matrices<4>);
}
inline void load_matrices2(u32* to, const char* from) {
  emulation::Load mine{from, to};
  emulation::with_warp<emulation::Load>(mine, emulation::matrices<2>);
}
template <int FAMILY, int ACT>
void multiply(float* d, const u32* w, const u32* x) {
  emulation::Product<float> mine{d, w, x};
  emulation::with_warp<emulation::Product<float>>(mine, emulation::product<ACT, float>);
}
template <int FAMILY>
void multiply(int* d, const u32* w, const u32* x) {
  emulation::Product<int> mine{d, w, x};
  emulation::with_warp<emulation::Product<int>>(mine, emulation::product<2, int>);
}

}  // namespace qcore_marlin

#define QCORE_MARLIN_KERNEL(NAME, ...)                                                               \
  extern "C" void NAME(const qcore_marlin::Params* params, int blocks, int order) {                  \
    using C = qcore_marlin::Config<__VA_ARGS__>;                                                     \
    qcore_marlin::emulation::launch(C::THREADS, C::SHARED_BYTES, blocks, order,                      \
                                    [params] { qcore_marlin::run<C>(*params); });                    \
  }
