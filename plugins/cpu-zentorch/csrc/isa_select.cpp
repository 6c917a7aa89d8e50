// Which instruction sets this machine can run, and which of them is in use. No torch here: the harness of the
// tests (tests/isa_harness) links this file too.

#include "isa_select.h"

#include <atomic>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qcore_cpu {
namespace {

struct Candidate {
  const IsaKernels* kernels;
  const IsaKernels* bases[2];  // have what `kernels` leaves out, the first of them first
  bool (*supported)();
};

#ifdef __x86_64__
// __builtin_cpu_supports asks cpuid, and XGETBV for what the operating system saves on a switch.
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

[[maybe_unused]] bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Names that not every compiler knows are looked up in cpuid.
struct Leaf7 {
  unsigned edx = 0, sub1_eax = 0;
  Leaf7() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    edx = d;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) sub1_eax = a;
  }
};

[[maybe_unused]] bool has_avxvnni() { return has_avx2() && (Leaf7().sub1_eax >> 4 & 1); }

bool os_saves_tiles() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned tiles = 3u << 17;
  return (low & tiles) == tiles;
}

// Linux gives tiles to a process that asks for them; its threads, also those that run already, have them too.
bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

[[maybe_unused]] bool has_amx() {
  constexpr unsigned bits = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  return has_avx512_bf16() && (Leaf7().edx & bits) == bits && os_saves_tiles() && tiles_permitted();
}
#endif

#ifdef __aarch64__
[[maybe_unused]] bool has_dotprod() {
#ifdef __linux__
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  return true;  // every processor that the system runs on
#else
  return false;
#endif
}
#endif

// The first that a machine supports is used, unless another is asked for. AMX comes after what it could replace: no
// time was ever measured of it.
constexpr Candidate kCandidates[] = {
#ifdef QCORE_CPU_AVX512_BF16
    {&avx512_bf16_kernels, {&avx512_kernels}, has_avx512_bf16},
#endif
#ifdef QCORE_CPU_AMX
    {&amx_kernels, {&avx512_bf16_kernels, &avx512_kernels}, has_amx},
#endif
#ifdef QCORE_CPU_AVX512
    {&avx512_kernels, {}, has_avx512},
#endif
#ifdef QCORE_CPU_AVXVNNI
    {&avxvnni_kernels, {&avx2_kernels}, has_avxvnni},
#endif
#ifdef QCORE_CPU_AVX2
    {&avx2_kernels, {}, has_avx2},
#endif
#ifdef QCORE_CPU_NEON
    {&neon_kernels, {}, has_dotprod},
#endif
    {&scalar_kernels, {}, [] { return true; }},
};
constexpr int kCount = sizeof(kCandidates) / sizeof(kCandidates[0]);

template <class Table>
void complete_table(Table& table, const Table& base) {
  if (!table.pack_rows) table = base;
}

static_assert(sizeof(IsaKernels) == (3 * kWidths + 6) * sizeof(Wna16Kernels) + sizeof(Int8Kernels) + 5 * sizeof(void*),
              "a new entry of the table must be completed below too");

void complete(IsaKernels& k, const IsaKernels& base) {
  for (int c = 0; c < 3; ++c) {
    for (int b = 0; b < kWidths; ++b) complete_table(k.wna16[c][b], base.wna16[c][b]);
  }
  for (int i = 0; i < 2; ++i) {
    complete_table(k.e2m1[i], base.e2m1[i]);
    complete_table(k.e4m3[i], base.e4m3[i]);
    complete_table(k.lookup[i], base.lookup[i]);
  }
  if (!k.round_row) k.round_row = base.round_row;
  if (!k.row_amax) k.row_amax = base.row_amax;
  if (!k.attend) k.attend = base.attend;
  if (!k.quantize_row) k.quantize_row = base.quantize_row;
  complete_table(k.int8, base.int8);
}

// What a set leaves out comes from the sets that it is built on; the copy is made here, by code that every
// processor runs.
IsaKernels completed(const Candidate& candidate) {
  IsaKernels kernels = *candidate.kernels;
  for (const IsaKernels* base : candidate.bases) {
    if (base) complete(kernels, *base);
  }
  return kernels;
}

struct Isas {
  IsaKernels tables[kCount];
  bool supported[kCount];
  std::atomic<const IsaKernels*> active{nullptr};

  Isas() {
    for (int i = 0; i < kCount; ++i) {
      tables[i] = completed(kCandidates[i]);
      supported[i] = kCandidates[i].supported();
      if (supported[i] && !active) active = &tables[i];
    }
  }
};

Isas& isas() {
  static Isas all;
  return all;
}

}  // namespace

const IsaKernels& active_isa() { return *isas().active.load(std::memory_order_acquire); }

const IsaKernels* supported_isa(std::string_view name) {
  for (int i = 0; i < kCount; ++i) {
    if (isas().supported[i] && name == isas().tables[i].name) return &isas().tables[i];
  }
  return nullptr;
}

void set_active_isa(const IsaKernels& kernels) {
  isas().active.store(&kernels, std::memory_order_release);
}

std::string isa_names(bool only_supported) {
  std::string names;
  for (int i = 0; i < kCount; ++i) {
    if (only_supported && !isas().supported[i]) continue;
    names += (names.empty() ? "" : ",") + std::string(isas().tables[i].name);
  }
  return names;
}

}  // namespace qcore_cpu
