// Which instruction sets this machine can run, and which of them is in use.

#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <string>
#include <string_view>

namespace qcore_cpu {
namespace {

struct Candidate {
  const IsaKernels* kernels;
  bool (*supported)();
};

#ifdef QCORE_CPU_X86
// __builtin_cpu_supports asks cpuid, and XGETBV for what the operating system saves on a switch.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

// Widest first.
const Candidate kCandidates[] = {
#ifdef QCORE_CPU_X86
    {&avx512_bf16_kernels, has_avx512_bf16},
    {&avx512_kernels, has_avx512},
    {&avx2_kernels, has_avx2},
#endif
    {&scalar_kernels, [] { return true; }},
};

const IsaKernels* widest_supported() {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) return candidate.kernels;
  }
  return &scalar_kernels;
}

std::atomic<const IsaKernels*>& active_slot() {
  static std::atomic<const IsaKernels*> slot{widest_supported()};
  return slot;
}

std::string isa() { return active_isa().name; }

std::string supported_isas() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (!candidate.supported()) continue;
    if (!names.empty()) names += ",";
    names += candidate.kernels->name;
  }
  return names;
}

std::string compiled_isas() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    names += (names.empty() ? "" : ",") + std::string(candidate.kernels->name);
  }
  return names;
}

void set_isa(std::string_view name) {
  for (const Candidate& candidate : kCandidates) {
    if (name == candidate.kernels->name && candidate.supported()) {
      active_slot().store(candidate.kernels, std::memory_order_release);
      return;
    }
  }
  STD_TORCH_CHECK(false, "set_isa: name is '", std::string(name),
                  "'; this machine supports: ", supported_isas());
}

}  // namespace

const IsaKernels& active_isa() { return *active_slot().load(std::memory_order_acquire); }

}  // namespace qcore_cpu

STABLE_TORCH_LIBRARY_FRAGMENT(qcore_cpu, m) {
  m.def("isa() -> str");
  m.def("supported_isas() -> str");
  m.def("compiled_isas() -> str");
  m.def("set_isa(str name) -> ()");
}

// No tensor argument, hence no CPU key to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(qcore_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&qcore_cpu::isa));
  m.impl("supported_isas", TORCH_BOX(&qcore_cpu::supported_isas));
  m.impl("compiled_isas", TORCH_BOX(&qcore_cpu::compiled_isas));
  m.impl("set_isa", TORCH_BOX(&qcore_cpu::set_isa));
}
