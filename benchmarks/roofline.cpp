// What the machine can do at most: bytes a second from memory, operations a second in registers.
//
//   c++ -O2 -std=c++17 -pthread -shared -fPIC roofline.cpp -o roofline.so
//
// An operation is one multiplication or one addition, so a product of M x K and K x N takes 2*M*N*K.

#include <immintrin.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Runs `work(thread)` in all threads at once; seconds until the last is done.
template <class Work>
double seconds(int threads, Work work) {
  std::vector<std::thread> others;
  const auto begin = Clock::now();
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (auto& other : others) other.join();
  return since(begin);
}

// So many streams side by side. With how many a core keeps most lines on their way differs: one thread of a Zen 4 reads
// twice as fast in one stream as in four.
template <int STREAMS>
__attribute__((target("avx2"))) void read_all(const char* data, int64_t bytes) {
  __m256i sum = _mm256_setzero_si256();
  const int64_t part = bytes / STREAMS / 64 * 64;
  for (int64_t i = 0; i < part; i += 64) {
    for (int s = 0; s < STREAMS; ++s) {
      const auto* p = reinterpret_cast<const __m256i*>(data + s * part + i);
      sum = _mm256_xor_si256(sum, _mm256_xor_si256(_mm256_load_si256(p), _mm256_load_si256(p + 1)));
    }
  }
  asm volatile("" ::"x"(sum));
}

using Reader = void (*)(const char*, int64_t);
constexpr Reader kReaders[] = {read_all<1>, read_all<2>, read_all<4>, read_all<8>, read_all<16>};

constexpr int64_t kSteps = 1 << 17;

// Twelve independent chains hide the latency; the asm keeps the compiler from merging them, and from taking
// a product of the same numbers out of the loop.
#define QCORE_CHAINS(setup, step, out, n)             \
  setup;                                              \
  for (int64_t i = 0; i < kSteps; ++i) {              \
    _Pragma("GCC unroll 16") for (int c = 0; c < n; ++c) { step; } \
  }                                                   \
  _Pragma("GCC unroll 16") for (int c = 0; c < n; ++c) asm volatile("" ::"x"(out[c]));

#define QCORE_OPAQUE(v) asm volatile("" : "+x"(v))

__attribute__((target("avx2,fma"))) void fma_avx2(int) {
  __m256 a = _mm256_set1_ps(1.0f), acc[12] = {};
  QCORE_CHAINS(, acc[c] = _mm256_fmadd_ps(a, a, acc[c]); QCORE_OPAQUE(acc[c]), acc, 12)
}
__attribute__((target("avx2"))) void int16_avx2(int) {  // vpmaddubsw, vpaddw
  __m256i a = _mm256_set1_epi8(1), acc[12] = {};
  QCORE_CHAINS(, QCORE_OPAQUE(a); __m256i p = _mm256_maddubs_epi16(a, a); QCORE_OPAQUE(p);
               acc[c] = _mm256_add_epi16(acc[c], p); QCORE_OPAQUE(acc[c]), acc, 12)
}
__attribute__((target("avx2"))) void words_avx2(int) {  // vpmaddwd, vpaddd
  __m256i a = _mm256_set1_epi16(1), acc[12] = {};
  QCORE_CHAINS(, QCORE_OPAQUE(a); __m256i p = _mm256_madd_epi16(a, a); QCORE_OPAQUE(p);
               acc[c] = _mm256_add_epi32(acc[c], p); QCORE_OPAQUE(acc[c]), acc, 12)
}
__attribute__((target("avx2"))) void int8_avx2(int) {  // vpmaddubsw, vpmaddwd, vpaddd
  __m256i a = _mm256_set1_epi8(1), one = _mm256_set1_epi16(1), acc[12] = {};
  QCORE_CHAINS(, QCORE_OPAQUE(a); __m256i p = _mm256_maddubs_epi16(a, a);
               p = _mm256_madd_epi16(p, one); QCORE_OPAQUE(p);
               acc[c] = _mm256_add_epi32(acc[c], p); QCORE_OPAQUE(acc[c]), acc, 12)
}
__attribute__((target("avx512f"))) void fma_avx512(int) {
  __m512 a = _mm512_set1_ps(1.0f), acc[16] = {};
  QCORE_CHAINS(, acc[c] = _mm512_fmadd_ps(a, a, acc[c]); asm volatile("" : "+v"(acc[c])), acc, 16)
}
__attribute__((target("avx512f,avx512vnni"))) void vnni_avx512(int) {
  __m512i a = _mm512_set1_epi8(1), acc[16] = {};
  QCORE_CHAINS(, acc[c] = _mm512_dpbusd_epi32(acc[c], a, a); asm volatile("" : "+v"(acc[c])), acc, 16)
}
__attribute__((target("avx512f,avx512bf16"))) void bf16_avx512(int) {
  __m512i a = _mm512_set1_epi16(0x3f80);
  __m512 acc[16] = {};
  QCORE_CHAINS(, acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)a, (__m512bh)a);
               asm volatile("" : "+v"(acc[c])), acc, 16)
}

struct Unit {
  const char* name;
  void (*run)(int);
  double operations;  // of one thread
  bool supported;
};

}  // namespace

extern "C" {

// Bytes a second of reading `bytes` of memory in large pages, in as many streams as are fastest.
double read_bandwidth(int threads, int64_t bytes) {
  constexpr int64_t page = 1 << 21;
  bytes = bytes / page * page;
  char* raw = static_cast<char*>(mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) return 0;
  char* data = raw + (page - reinterpret_cast<uintptr_t>(raw) % page) % page;
  madvise(data, bytes, MADV_HUGEPAGE);
  std::memset(data, 1, bytes);
  double best = 1e30;
  for (int round = 0; round < 3; ++round) {
    for (const Reader read : kReaders) {
      const double time = seconds(threads, [&](int t) {
        const int64_t part = bytes / threads / 64 * 64;
        read(data + t * part, part);
      });
      if (time < best) best = time;
    }
  }
  munmap(raw, bytes + page);
  return bytes / best;
}

// Operations a second of one unit ("fma_avx2", ...); 0 where this machine has it not.
double operations(const char* name, int threads) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const Unit units[] = {
      {"fma_avx2", fma_avx2, 12.0 * 16 * kSteps, avx2},
      {"int16_avx2", int16_avx2, 12.0 * 64 * kSteps, avx2},
      {"words_avx2", words_avx2, 12.0 * 32 * kSteps, avx2},
      {"int8_avx2", int8_avx2, 12.0 * 64 * kSteps, avx2},
      {"fma_avx512", fma_avx512, 16.0 * 32 * kSteps, avx512},
      {"vnni_avx512", vnni_avx512, 16.0 * 128 * kSteps, avx512 && __builtin_cpu_supports("avx512vnni")},
      {"bf16_avx512", bf16_avx512, 16.0 * 64 * kSteps, avx512 && __builtin_cpu_supports("avx512bf16")},
  };
  for (const Unit& unit : units) {
    if (std::strcmp(unit.name, name) != 0 || !unit.supported) continue;
    double best = 1e30;
    for (int round = 0; round < 40; ++round) {
      const double time = seconds(threads, unit.run);
      if (time < best) best = time;
    }
    return threads * unit.operations / best;
  }
  return 0;
}
}
