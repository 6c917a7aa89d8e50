// Loops that are no loops: `repeat<n>(f)` calls f(0) ... f(n - 1) with constants, so that an array that f
// indexes is a set of registers. (An unrolling pragma comes too late for GCC to see that.)

#define QCORE_INLINE inline __attribute__((always_inline))
#define QCORE_BODY __attribute__((always_inline))  // of a lambda
#define QCORE_NOINLINE __attribute__((noinline))  // registers are shared out within a function

namespace {

template <int i>
struct Index {
  constexpr operator int() const { return i; }
};

template <int... i>
struct Indices {};
template <int n, int... i>
struct UpTo : UpTo<n - 1, n - 1, i...> {};
template <int... i>
struct UpTo<0, i...> {
  using type = Indices<i...>;
};

// All calls stand in one function: were each in the next one's, GCC would copy the last n times.
template <class Body, int... i>
QCORE_INLINE constexpr void call_each(const Body& body, Indices<i...>) {
  (body(Index<i>()), ...);
}
template <int n, class Body>
QCORE_INLINE constexpr void repeat(const Body& body) {
  call_each(body, typename UpTo<n>::type());
}

// for (int r ...) for (int b ...)
template <int rows, int blocks, class Body>
QCORE_INLINE void repeat2(const Body& body) {
  repeat<rows * blocks>([&](auto i) QCORE_BODY { body(Index<i / blocks>(), Index<i % blocks>()); });
}

}  // namespace
