// What a test says of a scaled product that runs on the processor; after a kernel's file.
#pragma once

using namespace qcore_cuda;

struct Arguments {
  const void *a, *b, *a_scale, *b_scale, *bias, *azp, *azp_adj;
  void* out;
  int m, n, k, a_scale_row, b_scale_row;  // elements from row to row of scales by block: [steps, M], [columns / 128, steps]
  int clusters, shared, rows, int8, seed;  // rows of a tile
};

inline const uint8_t* bytes_of(const void* data) { return static_cast<const uint8_t*>(data); }

inline ScaledMM problem_of(const Arguments& g, bool by_block) {
  ScaledMM p{};
  p.m = g.m, p.n = g.n, p.k = g.k;
  p.a_scale = static_cast<const float*>(g.a_scale), p.b_scale = static_cast<const float*>(g.b_scale);
  p.a_per_token = p.b_per_channel = true;
  p.by_block = by_block;
  p.a_scale_m = 1, p.a_scale_k = g.a_scale_row, p.b_scale_n = g.b_scale_row, p.b_scale_k = 1;
  p.bias = g.bias;
  p.azp = static_cast<const int32_t*>(g.azp), p.azp_adj = static_cast<const int32_t*>(g.azp_adj);
  p.azp_per_token = true;
  return p;
}
