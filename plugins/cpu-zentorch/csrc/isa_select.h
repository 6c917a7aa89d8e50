// The instruction sets that this library has code for, as isa.cpp and the harness of the tests ask for them.
#pragma once

#include <string>
#include <string_view>

#include "isa.h"

namespace qcore_cpu {

// The kernels of a set that this machine can run, or null.
const IsaKernels* supported_isa(std::string_view name);

// From now on active_isa() is this one of supported_isa's.
void set_active_isa(const IsaKernels& kernels);

// Comma separated, widest first.
std::string isa_names(bool only_supported);

}  // namespace qcore_cpu
