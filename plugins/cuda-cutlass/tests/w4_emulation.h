// A cluster of blocks on a processor without a GPU, for kernels as they are, above all csrc/w4_mid_m_kernel.cuh: every
// thread is a fiber, warps meet at mma and shuffles. The copy engine finishes its copies in any order, some time after
// they were asked for; until then there are NaNs in their place, so that a wait that is missing, or a stage
// that is given back too early, shows. Reads of shared memory by 16 bytes that meet in a bank end the run.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define QCORE_EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using std::min;

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- numbers of 16 bits --------------------------------------------------------------------------

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
template <class T>
struct PairOfSixteen {
  T x, y;
};
using __half2 = PairOfSixteen<__half>;
using __nv_bfloat162 = PairOfSixteen<__nv_bfloat16>;

inline float value_of(__half v) {
  _Float16 h;
  std::memcpy(&h, &v, 2);
  return h;
}
inline float value_of(__nv_bfloat16 v) {
  const uint32_t bits = uint32_t{v.bits} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline void round_to(__half& to, double v) {
  const auto h = static_cast<_Float16>(v);
  std::memcpy(&to, &h, 2);
}
inline void round_to(__nv_bfloat16& to, double d) {  // of what float32 holds
  const float v = static_cast<float>(d);
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  to.bits = v != v ? uint16_t{0x7fff} : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <class T>
T rounded(double v) {
  T to;
  round_to(to, v);
  return to;
}

inline float __half2float(__half v) { return value_of(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return value_of(v); }
inline __half __float2half_rn(float v) { return rounded<__half>(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return rounded<__nv_bfloat16>(v); }
inline __half2 __floats2half2_rn(float x, float y) { return {rounded<__half>(x), rounded<__half>(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {rounded<__nv_bfloat16>(x), rounded<__nv_bfloat16>(y)};
}
template <class T>
float __low2float(PairOfSixteen<T> v) {
  return value_of(v.x);
}
inline float2 __half22float2(__half2 v) { return {value_of(v.x), value_of(v.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {value_of(v.x), value_of(v.y)}; }
template <class T>
PairOfSixteen<T> __hfma2(PairOfSixteen<T> a, PairOfSixteen<T> b, PairOfSixteen<T> c) {
  const auto one = [](T p, T q, T r) { return rounded<T>(double{value_of(p)} * value_of(q) + value_of(r)); };
  return {one(a.x, b.x, c.x), one(a.y, b.y, c.y)};
}
template <class T>
PairOfSixteen<T> __hmul2(PairOfSixteen<T> a, PairOfSixteen<T> b) {
  return {rounded<T>(double{value_of(a.x)} * value_of(b.x)), rounded<T>(double{value_of(a.y)} * value_of(b.y))};
}
template <class T>
PairOfSixteen<T> __hsub2(PairOfSixteen<T> a, PairOfSixteen<T> b) {
  return {rounded<T>(double{value_of(a.x)} - value_of(b.x)), rounded<T>(double{value_of(a.y)} - value_of(b.y))};
}

inline float __uint_as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, int shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t v = 0;
  for (int i = 0; i < 4; ++i) v |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return v;
}

// ---- threads -------------------------------------------------------------------------------------

namespace emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "emulation: %s\n", why);
  std::abort();
}

struct Meeting {
  int arrived = 0, generation = 0;
  void* arguments[32];
};

struct Fiber {
  ucontext_t context;  // to begin; then `place`, which costs no system call
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  bool done = false;
  Index thread;
  int block = 0;
};

struct Block {
  Index index;
  std::vector<uint8_t> memory;
  std::vector<Meeting> warps;
  Meeting named[16];
  int left = 0;  // threads that have not ended
  uint8_t* first() { return memory.data() + (-reinterpret_cast<uintptr_t>(memory.data()) & 1023); }
};

struct Cluster {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  Meeting all;
  std::vector<std::function<void()>> copies;
  ucontext_t start;
  jmp_buf scheduler;
  Fiber* current = nullptr;
  int left = 0;  // threads that have not ended
  std::function<void()> body;
  uint32_t random = 1;
  uint32_t next_random() { return random = random * 1664525u + 1013904223u, random >> 8; }
};

inline Cluster* cluster = nullptr;
inline Fiber& self() { return *cluster->current; }
inline Block& block() { return cluster->blocks[self().block]; }
// Shared memory of a block, which must be there still.
inline uint8_t* memory_of(uint32_t rank) {
  if (cluster->blocks[rank].left == 0) stop("a block ended before its memory was read");
  return cluster->blocks[rank].first();
}
inline void yield() {
  if (!_setjmp(self().place)) _longjmp(cluster->scheduler, 1);
}
inline void go_on(Fiber& fiber) {
  cluster->current = &fiber;
  if (_setjmp(cluster->scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  swapcontext(&cluster->start, &fiber.context);
}

inline void meet(Meeting& meeting, int of, const std::function<void()>& last = nullptr) {
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
  Meeting& meeting = block().warps[self().thread.x / 32];
  meeting.arguments[self().thread.x % 32] = &mine;
  meet(meeting, 32, [&] { together(reinterpret_cast<Arguments**>(meeting.arguments)); });
}

inline void entry() {
  cluster->body();
  self().done = true;
  --cluster->left, --block().left;
  yield();
}

// The blocks (x, 0 ... split - 1, z) of a grid.
inline void run_cluster(int threads, int bytes, int split, unsigned x, unsigned z, uint32_t seed,
                        std::function<void()> body) {
  Cluster c;
  c.random = seed;
  c.body = std::move(body);
  c.blocks.resize(split);
  c.fibers.resize(static_cast<size_t>(threads) * split);
  cluster = &c;
  for (int b = 0; b < split; ++b) {
    c.blocks[b].index = {x, static_cast<unsigned>(b), z};
    c.blocks[b].memory.assign(bytes + 1024, 0xff);
    c.blocks[b].warps.resize(threads / 32);
    c.blocks[b].left = threads;
  }
  for (size_t i = 0; i < c.fibers.size(); ++i) {
    Fiber& fiber = c.fibers[i];
    constexpr size_t kStack = 32 << 10;
    fiber.stack = std::make_unique<char[]>(kStack);
    fiber.thread.x = static_cast<unsigned>(i % threads);
    fiber.block = static_cast<int>(i / threads);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
  }
  c.left = static_cast<int>(c.fibers.size());
  size_t slow = 0;
  for (int turn = 0; c.left; ++turn) {
    if (turn > 1000000) stop("nobody goes on");
    // Some warps are far ahead of others, until others are.
    if (turn % 64 == 0) slow = c.next_random() % (c.fibers.size() / 32);
    for (size_t i = 0; i < c.fibers.size(); ++i) {
      Fiber& fiber = c.fibers[i];
      if (fiber.done || (i / 32 == slow && turn % 64 < 60)) continue;
      go_on(fiber);
    }
    if (!c.copies.empty() && c.next_random() % 2) {
      const size_t which = c.next_random() % c.copies.size();
      std::swap(c.copies[which], c.copies.back());
      c.copies.back()();
      c.copies.pop_back();
    }
  }
  if (!c.copies.empty()) stop("a block ended before its copies");
  cluster = nullptr;
}

// ---- barriers in shared memory: 8 bytes ----------------------------------------------------------

struct Barrier {
  uint8_t phase, expected;
  int16_t pending;
  int32_t bytes;
  void look() {
    if (pending < 0) stop("too many arrivals");
    if (pending == 0 && bytes == 0) phase ^= 1, pending = expected;
  }
};
static_assert(sizeof(Barrier) == 8);

inline void copy_later(void* target, int bytes, uint64_t* barrier, std::function<void()> copy) {
  std::memset(target, 0xff, bytes);
  cluster->copies.push_back([=] {
    copy();
    auto* const b = reinterpret_cast<Barrier*>(barrier);
    b->bytes -= bytes;
    b->look();
  });
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16".
template <class T>
struct Product {
  float* d;
  uint32_t w[4], x[2];
};
template <class T>
double element(uint32_t word, int i) {
  T v;
  v.bits = static_cast<uint16_t>(word >> (16 * i));
  return value_of(v);
}
template <class T>
void product(Product<T>* const* lanes) {
  double w[16][16], x[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = g + (i / 2 % 2 ? 8 : 0), k = 2 * q + i % 2 + (i >= 4 ? 8 : 0);
      w[row][k] = element<T>(lanes[lane]->w[i / 2], i % 2);
      if (i < 4) x[2 * q + i % 2 + (i >= 2 ? 8 : 0)][g] = element<T>(lanes[lane]->x[i / 2], i % 2);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
      double sum = 0;
      for (int k = 0; k < 16; ++k) sum += w[row][k] * x[k][column];
      lanes[lane]->d[i] = static_cast<float>(lanes[lane]->d[i] + sum);
    }
  }
}

// ldmatrix: lane i has row i of four matrices of 8 rows; it gets two numbers of each.
struct Rows {
  const uint8_t* row;
  uint32_t found[4];
};
inline void matrices(Rows* const* lanes) {
  for (int i = 0; i < 4; ++i) {
    int used = 0;
    for (int r = 0; r < 8; ++r) used |= 1 << (reinterpret_cast<uintptr_t>(lanes[8 * i + r]->row) / 16 % 8);
    if (used != 0xff) stop("a conflict of banks");
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&lanes[lane]->found[i], lanes[8 * i + lane / 4]->row + lane % 4 * 4, 4);
  }
}

struct Read {
  const uint8_t* at;
};
inline void no_conflicts(Read* const* lanes) {
  for (int phase = 0; phase < 32; phase += 8) {
    int used = 0;
    for (int i = 0; i < 8; ++i) used |= 1 << (reinterpret_cast<uintptr_t>(lanes[phase + i]->at) / 16 % 8);
    if (used != 0xff) stop("a conflict of banks");
  }
}

}  // namespace emulation

#define threadIdx (emulation::self().thread)
#define blockIdx (emulation::block().index)

inline void __syncwarp() { emulation::meet(emulation::block().warps[threadIdx.x / 32], 32); }
inline void __syncthreads() {
  emulation::meet(emulation::block().named[0], static_cast<int>(emulation::block().warps.size()) * 32);
}
inline int __shfl_sync(uint32_t, unsigned v, int) { return static_cast<int>(v); }  // the same in all lanes here
inline void begin_turn() {}

// ---- csrc/sm90_ptx.cuh ---------------------------------------------------------------------------

// Rows of bytes, `stride` apart, read in boxes of `box_rows` rows of 128 bytes, swizzled by 128 bytes; several side by
// side are one copy. Or of elements, in boxes of `box_bytes`, as they are.
struct CUtensorMap {
  const uint8_t* data;
  int64_t rows, bytes, stride;
  int box_rows, boxes, element_bytes = 1, box_bytes = 128;
};

namespace qcore_cuda {

inline uint32_t and_or(uint32_t a, uint32_t mask, uint32_t base) { return (a & mask) | base; }

template <class T>
void mma_16816(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulation::Product<T> mine{d, {a0, a1, a2, a3}, {b0, b1}};
  emulation::with_warp<emulation::Product<T>>(mine, emulation::product<T>);
}

namespace sm90 {

using emulation::Barrier;

constexpr uint64_t kEvictNormal = 0, kEvictFirst = 1, kEvictLast = 2;

inline uint8_t* shared_memory(uint32_t) { return emulation::block().first(); }
inline uint4 shared_vector(const uint8_t* p) {
  emulation::Read mine{p};
  emulation::with_warp<emulation::Read>(mine, emulation::no_conflicts);
  return *reinterpret_cast<const uint4*>(p);
}
inline uint4 shared_matrices(const uint8_t* row) {
  emulation::Rows mine{row, {}};
  emulation::with_warp<emulation::Rows>(mine, emulation::matrices);
  return {mine.found[0], mine.found[1], mine.found[2], mine.found[3]};
}
inline void store_vector(float* p, const float4& v) { *reinterpret_cast<float4*>(p) = v; }
inline void sync_threads(int barrier, int threads) { emulation::meet(emulation::block().named[barrier], threads); }
inline void cluster_sync() {  // of all threads that have not ended
  emulation::Meeting& all = emulation::cluster->all;
  const int generation = all.generation;
  ++all.arrived;
  while (all.generation == generation) {
    if (all.arrived == emulation::cluster->left) all.arrived = 0, ++all.generation;
    else emulation::yield();
  }
}
inline void cluster_leave() { cluster_sync(); }
inline float4 of_block(const float* p, uint32_t rank) {
  const auto at = reinterpret_cast<const uint8_t*>(p) - emulation::block().first();
  return *reinterpret_cast<const float4*>(emulation::memory_of(rank) + at);
}

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  *reinterpret_cast<Barrier*>(barrier) = {0, static_cast<uint8_t>(arrivals), static_cast<int16_t>(arrivals), 0};
}
inline void barrier_init_fence() {}
inline void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  auto* const b = reinterpret_cast<Barrier*>(barrier);
  b->bytes += static_cast<int32_t>(bytes);
  --b->pending;
  b->look();
}
inline void barrier_arrive(uint64_t* barrier) { barrier_expect(barrier, 0); }
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  while (reinterpret_cast<const Barrier*>(barrier)->phase == parity) emulation::yield();
}

inline bool elect_one() { return threadIdx.x % 32 == 0; }
inline void prefetch_map(const CUtensorMap*) {}
inline void load_box(void* target, const CUtensorMap* map, uint64_t* barrier, int x, int y, uint64_t = 0) {
  const bool swizzled = map->element_bytes == 1;
  if (reinterpret_cast<uintptr_t>(target) % (swizzled ? 1024 : 128)) emulation::stop("a box that begins anywhere");
  auto* const to = static_cast<uint8_t*>(target);
  const int width = map->box_bytes, first = x * map->element_bytes;
  emulation::copy_later(to, map->box_rows * width, barrier, [=] {
    for (int row = 0; row < map->box_rows; ++row) {
      for (int byte = 0; byte < width; ++byte) {
        const bool inside = y + row < map->rows && first + byte < map->bytes;
        const int vector = swizzled ? (byte / 16) ^ (row % 8) : byte / 16;
        to[row * width + vector * 16 + byte % 16] =
            inside ? map->data[(y + row) * map->stride + first + byte] : uint8_t{0};
      }
    }
  });
}
inline void load_boxes(void* target, const CUtensorMap* map, uint64_t* barrier, int x, int y, uint64_t) {
  for (int i = 0; i < map->boxes; ++i) {
    const int bytes = map->box_bytes;
    load_box(static_cast<uint8_t*>(target) + i * map->box_rows * bytes, map, barrier, (x + i) * bytes / map->element_bytes, y);
  }
}
inline void load_bytes(void* target, const void* source, uint32_t bytes, uint64_t* barrier) {
  if ((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source) | bytes) % 16) {
    emulation::stop("a copy that is not of whole vectors");
  }
  emulation::copy_later(target, static_cast<int>(bytes), barrier, [=] { std::memcpy(target, source, bytes); });
}

}  // namespace sm90
}  // namespace qcore_cuda
