// Loops that are no loops: `repeat<n>(f)` calls f(0) ... f(n - 1) with constants, so that an array that f
// indexes is a set of registers. (An unrolling pragma comes too late for GCC to see that.)

namespace {

template <int i>
struct Index {
  constexpr operator int() const { return i; }
};

template <int n, int i = 0, class Body>
QCORE_INLINE void repeat(const Body& body) {
  if constexpr (i < n) {
    body(Index<i>());
    repeat<n, i + 1>(body);
  }
}

// for (int r ...) for (int b ...)
template <int rows, int blocks, class Body>
QCORE_INLINE void repeat2(const Body& body) {
  repeat<rows * blocks>([&](auto i) QCORE_BODY { body(Index<i / blocks>(), Index<i % blocks>()); });
}

}  // namespace
