// A product and where its numbers are; the two ways to run it.
#pragma once

#include <optional>
#include <string>

#include "devices.h"
#include "matmul_types.h"
#include "op_support.h"

namespace qcore_xpu {

struct Pointers {
  const void *a, *a_scale, *a_zero, *b, *b_scale, *b_zero, *bias;
  void* out;
};

// Runs the product with oneDNN. Returns the implementation's name in `name` and true, or in `name` why
// oneDNN, or we, would not have it, and false. `like` is a tensor on whose device scratch memory is made.
bool run_onednn(Place& place, const Product& product, const Pointers& at, const Tensor& like, std::string& name);

// Runs it with our own kernel, compiled for the device when it is first asked for.
void run_sycl(Place& place, const Product& product, const Pointers& at);

// How often that has been compiled.
int64_t compiled_kernels();

// Primitives kept, and the most that are.
int64_t cached_primitives();
constexpr int64_t kMostPrimitives = 256;

}  // namespace qcore_xpu
