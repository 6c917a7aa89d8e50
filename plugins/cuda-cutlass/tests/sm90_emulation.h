// What csrc/scaled_mm_sm90_{blocks,columns,tiles}.cuh and w4_sm90_kernel.cuh need beyond w4_emulation.h: addresses in
// shared memory, barriers of other blocks, copies for a whole cluster, and wgmma, which reads its operands when it is
// waited for. What has been given back by then and is fetched anew reads as NaN.
#pragma once

#define __host__
#define __cluster_dims__(...)
#include "w4_emulation.h"

#include <map>
#include <utility>

using std::max;

struct int2 {
  int x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint32_t __float_as_uint(float v) { return reinterpret_cast<const uint32_t&>(v); }

namespace emulation {

inline unsigned blocks_of_grid = 0;

// Products of a thread that were begun, group after group.
using Group = std::vector<std::function<void()>>;
inline std::map<Fiber*, std::vector<Group>> begun;
inline std::map<Fiber*, size_t> committed;  // groups

inline void finish_products(Fiber* of, size_t but) {
  auto& groups = begun[of];
  while (groups.size() > but + 1) {  // the last one has not been committed
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
}

// For kernels in which one thread gives back what its whole warpgroup reads, as CUTLASS's do: a warpgroup's products are
// done for all of its warps or for none. Otherwise a warp's are done when that warp waits for them, and not before.
inline bool whole_warpgroups = false;

inline void finish_whole_products(size_t but) {
  Fiber* const first = &self() - self().thread.x % 128;
  const size_t due = committed[&self()] - but;
  const auto behind = [&](Fiber& fiber) { return committed[&fiber] < due; };
  while (std::any_of(first, first + 128, behind)) yield();
  for (Fiber* fiber = first; fiber < first + 128; ++fiber) finish_products(fiber, committed[fiber] - due);
}

inline float e4m3(uint8_t v) {
  const int exponent = v >> 3 & 15, mantissa = v & 7;
  if ((v & 0x7f) == 0x7f) return std::nanf("");
  const float size = exponent ? std::ldexp(8.0f + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return v & 0x80 ? -size : size;
}

// Copies of single numbers that a thread has asked for, and that no barrier waits for yet.
inline std::map<Fiber*, Group> asked;

// Of each block and warp: what lanes have in registers for a product that is being made.
inline uint32_t left_operands[8][8][32][4];

// The clusters of a launch, one after another: who gives sums has a lower number than who takes them.
inline void run_grid(int clusters, int blocks, int threads, int bytes, int seed, const std::function<void()>& kernel) {
  blocks_of_grid = clusters * blocks;
  for (int number = 0; number < clusters; ++number) {
    run_cluster(threads, bytes, blocks, 0, 0, seed + number, [&] {
      block().index.x = number * blocks + self().block;
      kernel();
    });
    begun.clear();
    committed.clear();
    asked.clear();
  }
}

struct Matrices {
  uint32_t address;
  const uint32_t* words;
};
inline void store_all(Matrices* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t row = lanes[8 * i + lane / 4]->address;
      std::memcpy(block().first() + row + lane % 4 * 4, lanes[lane]->words + i, 4);
    }
  }
}

}  // namespace emulation

#define gridDim (emulation::Index{emulation::blocks_of_grid})

template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline void __stcg(float4* p, const float4& v) { *p = v; }
inline float4 __ldcg(const float4* p) { return *p; }

namespace cute {
inline void warpgroup_arrive() {}
inline void warpgroup_commit_batch() {
  auto& groups = emulation::begun[&emulation::self()];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
  ++emulation::committed[&emulation::self()];
}
template <int BUT>
void warpgroup_wait() {
  emulation::yield();  // others may do what they should not
  if (emulation::whole_warpgroups) emulation::finish_whole_products(BUT);
  else emulation::finish_products(&emulation::self(), BUT);
}
namespace SM90::GMMA {
enum class ScaleIn { One };
enum class Major { K };
#define QCORE_EMULATED_ATOMS(ROWS)                                                            \
  template <ScaleIn, ScaleIn>                                                                 \
  struct MMA_64x##ROWS##x32_F32E4M3E4M3_SS_TN {                                               \
    static float number(uint8_t v) { return emulation::e4m3(v); }                             \
  };                                                                                          \
  struct MMA_64x##ROWS##x32_S32S8S8_SS_TN {                                                   \
    static uint32_t number(uint8_t v) { return static_cast<uint32_t>(static_cast<int8_t>(v)); } \
  };
QCORE_EMULATED_ATOMS(8)
QCORE_EMULATED_ATOMS(16)
QCORE_EMULATED_ATOMS(32)
QCORE_EMULATED_ATOMS(64)
QCORE_EMULATED_ATOMS(128)
#undef QCORE_EMULATED_ATOMS
#define QCORE_EMULATED_ATOMS(ROWS)                                    \
  template <Major, Major>                                             \
  struct MMA_64x##ROWS##x16_F32F16F16_RS {                            \
    using Element = __half;                                           \
  };                                                                  \
  template <Major, Major>                                             \
  struct MMA_64x##ROWS##x16_F32BF16BF16_RS {                          \
    using Element = __nv_bfloat16;                                    \
  };
QCORE_EMULATED_ATOMS(64)
QCORE_EMULATED_ATOMS(128)
QCORE_EMULATED_ATOMS(256)
#undef QCORE_EMULATED_ATOMS
}  // namespace SM90::GMMA
template <typename Register>
void warpgroup_fence_operand(Register&) {}
}  // namespace cute

namespace qcore_cuda::sm90 {

inline uint8_t* at_shared(uint32_t address) { return emulation::block().first() + address; }
inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - emulation::block().first());
}
#define QCORE_SHARED_BYTES(name) uint8_t* const name = at_shared(16)  // not a multiple of 1024
template <int COUNT>
void shared_words(uint32_t (&v)[COUNT], uint32_t address) {
  if (address % (4 * COUNT)) emulation::stop("words that begin anywhere");
  std::memcpy(v, at_shared(address), 4 * COUNT);
}
inline float load_shared(uint32_t address) { return *reinterpret_cast<const float*>(at_shared(address)); }
inline void prefetch(const void*) {}
inline uint32_t word_of_block(const void* p, uint32_t rank) {
  const uint32_t at = shared_address(p);
  return *reinterpret_cast<const uint32_t*>(emulation::memory_of(rank) + at);
}
inline int cluster_rank() { return emulation::self().block; }
inline void sync_group(int group) { sync_threads(1 + group, 128); }
template <int COUNT>
void give_registers() {}
template <int COUNT>
void take_registers() {}

inline void store_release(uint8_t* p, uint32_t value) { *p = static_cast<uint8_t>(value); }
inline uint32_t load_acquire(const uint8_t* p) {
  emulation::yield();
  return *p;
}

// Of another block, where the address has its number and one above 24 bits.
inline uint8_t* in_cluster(uint32_t address) {
  return emulation::memory_of((address >> 24) - 1) + (address & 0xffffff);
}
inline uint32_t address_in_block(uint32_t address, uint32_t rank) { return address | (rank + 1) << 24; }
inline void barrier_arrive_there(uint32_t address) { barrier_arrive(reinterpret_cast<uint64_t*>(in_cluster(address))); }

inline void barrier_arrive_remote(uint64_t* barrier, uint32_t rank) {
  barrier_arrive_there(address_in_block(shared_address(barrier), rank));
}

inline void copy_float(float* target, const float* source) {
  std::memset(target, 0xff, 4);
  emulation::asked[&emulation::self()].push_back([=] { *target = *source; });
}
inline void barrier_arrive_after_copies(uint64_t* barrier) {
  emulation::cluster->copies.push_back([copies = std::move(emulation::asked[&emulation::self()]), barrier] {
    for (const auto& copy : copies) copy();
    barrier_arrive(barrier);
  });
  emulation::asked[&emulation::self()].clear();
}

inline void load_box_for(uint16_t blocks, void* target, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
  const uint32_t to = shared_address(target), at = shared_address(barrier);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    if (blocks >> rank & 1) {
      load_box(in_cluster(address_in_block(to, rank)), map,
               reinterpret_cast<uint64_t*>(in_cluster(address_in_block(at, rank))), x, y);
    }
  }
}

inline void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  emulation::Matrices mine{address, words};
  emulation::with_warp<emulation::Matrices>(mine, emulation::store_all);
}
inline void store_before_copies() {}
inline void store_box(const CUtensorMap* map, const void* source, int x, int y) {
  auto* const to = const_cast<uint8_t*>(map->data);
  for (int row = 0; row < map->box_rows && y + row < map->rows; ++row) {
    for (int byte = 0; byte < map->box_bytes && x + byte < map->bytes; ++byte) {
      const int vector = byte / 16 ^ row % 8;
      to[(y + row) * map->stride + x + byte] = static_cast<const uint8_t*>(source)[row * 128 + vector * 16 + byte % 16];
    }
  }
}
inline void commit_stores() {}
template <int BUT>
void wait_for_stores() {}
inline void wait_until_stored() {}

constexpr uint64_t kDescriptorHigh = uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
inline uint64_t matrix_descriptor(const void* p) {
  return (shared_address(p) & 0x3ffff) >> 4 | uint64_t{1} << 16 | kDescriptorHigh;
}
inline uint64_t further(uint64_t descriptor, uint32_t units) { return descriptor + units; }
template <typename Register, int COUNT>
void fence_registers(Register (&)[COUNT]) {}

// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk32": of d a thread has the columns 2q, 2q + 1 of rows g, g + 8.
template <typename Atom, typename Number, int COUNT, size_t... I>
void wgmma(uint64_t a, uint64_t b, Number (&d)[COUNT], bool accumulate, std::index_sequence<I...>) {
  auto& groups = emulation::begun[&emulation::self()];
  if (groups.empty()) groups.emplace_back();
  const uint8_t* const shared = emulation::block().first();
  const int thread = threadIdx.x % 128;
  groups.back().push_back([=, &d] {
    const int g = thread % 32 / 4, q = thread % 4;
    const auto row_of = [&](uint64_t descriptor, int row, Number (&values)[32]) {
      const uint32_t first = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
      for (int k = 0; k < 32; ++k) {
        const uint32_t at = first + row * 128 + k;
        values[k] = Atom::number(shared[at ^ (at >> 7 & 7) << 4]);
      }
    };
    Number rows[2][32], column[32];
    for (int h = 0; h < 2; ++h) row_of(a, thread / 32 * 16 + g + 8 * h, rows[h]);
    for (int i = 0; i < COUNT; i += 4) {
      for (int e = 0; e < 2; ++e) {
        row_of(b, 2 * i + 2 * q + e, column);
        for (int h = 0; h < 2; ++h) {
          Number sum = accumulate ? d[i + 2 * h + e] : 0;
          for (int k = 0; k < 32; ++k) sum += rows[h][k] * column[k];
          d[i + 2 * h + e] = sum;
        }
      }
    }
  });
}

// The same of m64nNk16 with a in registers, as `sm90_ptx.cuh` says; they, too, are read late.
template <typename Atom, int COUNT, size_t... I>
void wgmma_from_registers(const uint32_t (&a)[4], uint64_t b, float (&d)[COUNT], std::index_sequence<I...>) {
  using T = typename Atom::Element;
  auto& groups = emulation::begun[&emulation::self()];
  if (groups.empty()) groups.emplace_back();
  const int warp = threadIdx.x / 32;
  auto* const of_warp = &emulation::left_operands[emulation::self().block][warp];
  const uint32_t* const mine = a;
  const int lane = threadIdx.x % 32;
  groups.back().push_back([=, &d] {
    // Lanes of a quad have all of a row's 16 numbers.
    std::memcpy((*of_warp)[lane], mine, sizeof(a));
    __syncwarp();
    const uint8_t* const shared = emulation::block().first();
    const int g = lane / 4, q = lane % 4;
    double rows[2][16];
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 16; ++k) rows[h][k] = emulation::element<T>((*of_warp)[4 * g + k % 8 / 2][h + k / 8 * 2], k % 2);
    }
    for (int i = 0; i < COUNT; i += 4) {
      for (int e = 0; e < 2; ++e) {
        const uint32_t first = (static_cast<uint32_t>(b & 0x3fff) << 4) + (2 * i + 2 * q + e) * 128;
        double column[16];
        for (int k = 0; k < 16; ++k) {
          const uint32_t at = first + 2 * k;
          uint16_t bits;
          std::memcpy(&bits, shared + (at ^ (at >> 7 & 7) << 4), 2);
          column[k] = emulation::element<T>(bits, 0);
        }
        for (int h = 0; h < 2; ++h) {
          double sum = 0;
          for (int k = 0; k < 16; ++k) sum += rows[h][k] * column[k];
          d[i + 2 * h + e] = static_cast<float>(d[i + 2 * h + e] + sum);
        }
      }
    }
    __syncwarp();
  });
}

}  // namespace qcore_cuda::sm90
