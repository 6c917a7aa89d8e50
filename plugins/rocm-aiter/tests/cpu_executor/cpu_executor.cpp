// Runs the kernels of csrc/kernels.hip: g++ -std=c++17 -O3 -U_FORTIFY_SOURCE -fPIC -shared -ffp-contract=off
//   -DQCORE_LIKE_GFX942 -I tests/cpu_executor -I csrc tests/cpu_executor/cpu_executor.cpp
#include "kernels.hip"

#include <csetjmp>
#include <map>
#include <string>
#include <ucontext.h>
#include <vector>

namespace cpu {
int thread, block[2];

namespace {
constexpr size_t kStack = 128 << 10;

std::map<std::string, void (*)(const void*)>& kernels() {
  static std::map<std::string, void (*)(const void*)> all;
  return all;
}

// Threads that wait for each other. Whoever comes last lets all go on.
struct Meeting {
  int size, arrived;
  unsigned number;
};

// A fiber begins on a stack of its own by setcontext. From then on it is left and entered by _longjmp,
// which, other than swapcontext, does not call the kernel.
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  jmp_buf place;
  bool begun, done;
  unsigned round;
};

Fiber fibers[kThreads];
Meeting of_block, of_wave[kWaves];
alignas(16) char shown[kWaves][4][kWave * kLargest];
jmp_buf scheduler;
bool moved;  // since the last look at all fibers
void (*body)(const void*);
const void* body_args;

void leave() {
  if (_setjmp(fibers[thread].place) == 0) _longjmp(scheduler, 1);
}

void wait(Meeting& meeting) {
  const unsigned number = meeting.number;
  if (++meeting.arrived == meeting.size) {
    meeting.arrived = 0;
    ++meeting.number;
    moved = true;
    return;
  }
  while (meeting.number == number) leave();
}

void run_fiber() {
  for (;;) {  // a turn for each block
    body(body_args);
    fibers[thread].done = moved = true;
    leave();
  }
}

void enter(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  fiber.stack.resize(kStack);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
  setcontext(&fiber.context);
}

const char* run_block() {
  of_block = {kThreads, 0, 0};
  for (Meeting& meeting : of_wave) meeting = {kWave, 0, 0};
  for (Fiber& fiber : fibers) {
    fiber.done = false;
    fiber.round = 0;
  }
  for (int left = kThreads; left > 0;) {
    moved = false;
    left = 0;
    for (thread = 0; thread < kThreads; ++thread) {
      if (fibers[thread].done) continue;
      enter(fibers[thread]);
      left += !fibers[thread].done;
    }
    if (left > 0 && !moved) {
      for (Fiber& fiber : fibers) fiber.begun = false;  // where they stand is of no use
      return "threads wait for others that do not come";
    }
  }
  return nullptr;
}
}  // namespace

Kernel::Kernel(const char* name, void (*run)(const void*)) { kernels()[name] = run; }

void wait_for_block() { wait(of_block); }
void wait_for_wave() { wait(of_wave[thread / kWave]); }
void* next_round() { return shown[thread / kWave][fibers[thread].round++ % 4]; }
}  // namespace cpu

// One matrix instruction of one wave, operands and result by lane, for test_matrix_units.py.
struct Probe {
  const uint8_t* a;  // [lanes][kBytes]
  const uint8_t* b;
  void* sums;  // [lanes][kSums]
};

template <typename Element>
void probe(const Probe& p) {
  using Unit = MatrixUnit<Element>;
  if (wave_index() > 0) return;
  Bytes<Unit::kBytes> a, b;
  memcpy(&a, p.a + lane_index() * Unit::kBytes, Unit::kBytes);
  memcpy(&b, p.b + lane_index() * Unit::kBytes, Unit::kBytes);
  const auto sums = Unit::multiply(a, b, typename Unit::Sums{});
  memcpy(static_cast<char*>(p.sums) + lane_index() * sizeof sums, &sums, sizeof sums);
}

QCORE_KERNEL(probe_int8, Probe, p) { probe<Int8>(p); }
QCORE_KERNEL(probe_fp8, Probe, p) { probe<Fp8>(p); }
QCORE_KERNEL(probe_f16, Probe, p) { probe<F16>(p); }
QCORE_KERNEL(probe_bf16, Probe, p) { probe<Bf16>(p); }

// Two threads of a wave part at a meeting: the executor must say so instead of waiting for ever.
QCORE_KERNEL(probe_parted, Probe, p) {
  (void)p;
  if (thread_index() != 0) sync_block();
}

extern "C" int qcore_cpu_wave() { return kWave; }

// Run all blocks of a kernel; returns null, or what went wrong.
extern "C" const char* qcore_cpu_launch(const char* name, int blocks_x, int blocks_y,
                                        const void* args) {
  const auto found = cpu::kernels().find(name);
  if (found == cpu::kernels().end()) return "there is no such kernel";
  cpu::body = found->second;
  cpu::body_args = args;
  for (cpu::block[1] = 0; cpu::block[1] < blocks_y; ++cpu::block[1]) {
    for (cpu::block[0] = 0; cpu::block[0] < blocks_x; ++cpu::block[0]) {
      if (const char* problem = cpu::run_block()) return problem;
    }
  }
  return nullptr;
}
