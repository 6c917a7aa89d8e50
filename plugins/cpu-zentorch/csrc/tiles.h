// The tile registers of AMX, and the instructions on them. Written as assembly, so that every compiler has
// them and none moves a store past a load of the tile that it belongs to.

namespace {

template <int tile>
QCORE_INLINE void load_tile(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
QCORE_INLINE void store_tile(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
QCORE_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// sums += x * w in 32 bits, x of signed and w of unsigned bytes; or both bfloat16.
template <int sums, int x, int w>
QCORE_INLINE void multiply_int8_codes() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(x), "i"(w));
}
template <int sums, int x, int w>
QCORE_INLINE void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(x), "i"(w));
}

// Tiles of this thread, given back at the end, so that a switch of threads has none to save:
// 0 ... 3 sums of rows x 16; 4 and 6 rows of activations, 16 and `rest` steps of 4 bytes; 5 and 7 as many rows of
// weights.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (rows_) asm volatile("tilerelease");
  }

  void configure(int rows, int rest) {
    if (rest == 0) rest = rest_ ? rest_ : 16;  // not used
    if (rows == rows_ && rest == rest_) return;
    rows_ = rows;
    rest_ = rest;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t column_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.column_bytes[t] = static_cast<uint16_t>(t == 6 ? rest * 4 : 64);
      config.rows[t] = static_cast<uint8_t>(t == 5 ? 16 : t == 7 ? rest : rows);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

 private:
  int rows_ = 0, rest_ = 0;
};

}  // namespace
