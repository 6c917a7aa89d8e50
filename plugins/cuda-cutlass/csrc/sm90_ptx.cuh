// SM90's instructions by name: barriers in shared memory, the tensor copy engine, clusters, wgmma.
// Semantics: PTX ISA, "Asynchronous copy", "mbarrier", "wgmma".
// With QCORE_EMULATED tests put their own in its place, for a processor without a GPU.
#pragma once
#ifndef QCORE_EMULATED

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

namespace qcore_cuda::sm90 {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A block's dynamic shared memory, from a multiple of `alignment` on.
__device__ __forceinline__ uint8_t* shared_memory(uint32_t alignment) {
  extern __shared__ uint8_t dynamic_bytes[];
  return dynamic_bytes + (-shared_address(dynamic_bytes) & (alignment - 1));
}

// All of it, declared in place: with a function around it the compiler lays out the largest kernels' code otherwise. And
// what lies at an address in it.
#define QCORE_SHARED_BYTES(name) extern __shared__ uint8_t name[]
__device__ __forceinline__ uint8_t* at_shared(uint32_t address) {
  return static_cast<uint8_t*>(__cvta_shared_to_generic(address));
}
__device__ __forceinline__ float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

// Words that lie side by side at an address.
template <int COUNT>
__device__ __forceinline__ void shared_words(uint32_t (&v)[COUNT], uint32_t address) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4);
  if constexpr (COUNT == 1) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v[0]) : "r"(address));
  } else if constexpr (COUNT == 2) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(address));
  } else {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address));
  }
}

__device__ __forceinline__ uint4 shared_vector(const uint8_t* p) { return *reinterpret_cast<const uint4*>(p); }

// Four matrices of 8 rows of 16 bytes, which lane i names row i of; a lane gets two numbers of 16 bits of each.
__device__ __forceinline__ uint4 shared_matrices(const uint8_t* row) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared_address(row)));
  return v;
}

// By one instruction: of numbers that do not lie beside each other in registers the compiler would store each alone.
__device__ __forceinline__ void store_vector(float* p, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(p)), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

// True in one thread of a warp, the same each time. Copies of the copy engine stand behind it: of a thread that is
// chosen by its number the compiler does not know that it is alone, and makes a loop over all threads of the warp
// for each copy, which takes several times as long as the copy.
__device__ __forceinline__ bool elect_one() { return cute::elect_one_sync(); }

// A barrier for so many threads of a block.
__device__ __forceinline__ void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// The warpgroups that multiply have named barriers 1, 2, ...
__device__ __forceinline__ void sync_group(int group) { sync_threads(1 + group, 128); }

// So many registers for each thread of a warpgroup from here on: fewer than before, or more, which others must have given.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Asks for what will be read later.
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// ---- flags in global memory --------------------------------------------------------------------

// Who sees the flag sees all that this thread, and those that it met at a barrier, had stored before.
__device__ __forceinline__ void store_release(uint8_t* p, uint32_t value) {
  asm volatile("st.release.gpu.global.u8 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint8_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u8 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

// ---- barriers in shared memory -----------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

// What this thread stored in shared memory comes before what the copy engine and tensor cores read there.
__device__ __forceinline__ void store_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Makes initialized barriers visible to the copy engine and to the cluster.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  store_before_copies();
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// One arrival, which also announces bytes that the copy engine will bring.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// What lies at the same address in another block of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// At a barrier of any block of the cluster. It orders what this thread did in shared memory, no more: to release to
// the cluster would cost a wait for global memory.
__device__ __forceinline__ void barrier_arrive_there(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ void barrier_arrive_remote(uint64_t* barrier, uint32_t rank) {
  barrier_arrive_there(address_in_block(shared_address(barrier), rank));
}

// For what the copy engine brought. (To acquire from the cluster would empty the L1 cache each time.)
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra end;\n"
      "bra again;\n"
      "end:}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- copies of single numbers ---------------------------------------------------------------------

__device__ __forceinline__ void copy_float(float* target, const float* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(target)), "l"(source) : "memory");
}

// One arrival, when this thread's copies so far are done.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// ---- clusters ----------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Nobody leaves while others read its shared memory. It orders nothing, and so does not wait for what this thread
// stored to global memory.
__device__ __forceinline__ void cluster_leave() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// What lies at the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ float4 of_block(const float* p, uint32_t rank) {
  float4 v;
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
  return v;
}

__device__ __forceinline__ uint32_t word_of_block(const void* p, uint32_t rank) {
  uint32_t word;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(address_in_block(shared_address(p), rank)) : "memory");
  return word;
}

// ---- the tensor copy engine ----------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// How long data should stay in L2.
constexpr uint64_t kEvictNormal = 0x1000000000000000;
constexpr uint64_t kEvictFirst = 0x12f0000000000000;
constexpr uint64_t kEvictLast = 0x14f0000000000000;

// A box of a matrix, its first element at (x, y) with x along the rows.
__device__ __forceinline__ void load_box(void* target, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                         uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "l"(hint)
      : "memory");
}

// Boxes side by side, from box `x` of the rows on: each has 128 bytes of a row (byte_boxes_map).
__device__ __forceinline__ void load_boxes(void* target, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                           uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(y), "r"(x), "l"(hint)
      : "memory");
}

// A box for the blocks of a cluster whose bits are set, in the same place of each, and its barrier's.
__device__ __forceinline__ void load_box_for(uint16_t blocks, void* target, const CUtensorMap* map, uint64_t* barrier,
                                             int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(target)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

// By a warp: four matrices of 8 x 8 elements of 16 bits, of which a lane (4g + q) has elements 2q and 2q + 1 of row g, in
// a word each. Row r of matrix i goes to the address that lane 8i + r has.
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// A box from shared memory into a matrix, as far as it lies within; part of the thread's next group of stores.
__device__ __forceinline__ void store_box(const CUtensorMap* map, const void* source, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(source)), "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the last so many have left shared memory.
template <int BUT>
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(BUT) : "memory");
}
// Until all have arrived.
__device__ __forceinline__ void wait_until_stored() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Bytes without a map: both addresses and the number are multiples of 16.
__device__ __forceinline__ void load_bytes(void* target, const void* source, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(target)),
      "l"(source), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---- wgmma ---------------------------------------------------------------------------------------

// A matrix in shared memory whose rows are 128 bytes of K, as the copy engine writes it with a
// swizzle of 128 bytes; it begins at a multiple of 1024.
constexpr uint64_t kDescriptorHigh = uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;  // its upper half
__device__ __forceinline__ uint64_t matrix_descriptor(const void* p) {
  const uint64_t start = (shared_address(p) & 0x3ffff) >> 4;
  return start | uint64_t{1} << 16 | kDescriptorHigh;
}

// Products that write d stay on their side of this.
template <typename Register, int COUNT>
__device__ __forceinline__ void fence_registers(Register (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) cute::warpgroup_fence_operand(d[i]);
}

// The descriptor of what lies further on, in units of 16 bytes.
__device__ __forceinline__ uint64_t further(uint64_t descriptor, uint32_t units) {
  return (descriptor & 0xffffffff00000000) | (static_cast<uint32_t>(descriptor) + units);
}

// d (64 x N) = a @ b + (accumulate ? d : 0), both from shared memory.
template <typename Atom, typename Register, int COUNT, size_t... I>
__device__ __forceinline__ void wgmma(uint64_t a, uint64_t b, Register (&d)[COUNT], bool accumulate,
                                      std::index_sequence<I...>) {
  Atom::fma(a, b, d[I]..., accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}

// The same with a in registers: of a thread, rows g and g + 8 of its warp's 16, inputs 2q and 2q + 1, then
// those 8 further on, where lane = 4g + q. d is added to.
template <typename Atom, int COUNT, size_t... I>
__device__ __forceinline__ void wgmma_from_registers(const uint32_t (&a)[4], uint64_t b, float (&d)[COUNT],
                                                     std::index_sequence<I...>) {
  Atom::fma(a[0], a[1], a[2], a[3], b, d[I]..., cute::SM90::GMMA::ScaleOut::One);
}

}  // namespace qcore_cuda::sm90

#endif  // QCORE_EMULATED
