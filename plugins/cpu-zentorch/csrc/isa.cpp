// The ops that tell and choose the instruction set in use.

#include <torch/csrc/stable/library.h>

#include "isa_select.h"
#include "op_support.h"

namespace qcore_cpu {
namespace {

std::string isa() { return active_isa().name; }
std::string supported_isas() { return isa_names(true); }
std::string compiled_isas() { return isa_names(false); }

void set_isa(std::string_view name) {
  const IsaKernels* kernels = supported_isa(name);
  QCORE_CHECK(kernels, "set_isa: name is '", std::string(name),
                  "'; this machine supports: ", supported_isas());
  set_active_isa(*kernels);
}

}  // namespace
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
