// Of a launch of the 8-bit kernels of large tiles on SM90: which tiles several clusters share, and their memory.
#pragma once

#include <optional>

#include "handed_sums.cuh"
#include "meeting_flags.h"
#include "scaled_mm.h"
#include "scaled_mm_share.h"
#include "scaled_mm_sm90_walk.cuh"

namespace qcore_cuda {

// Shares the last tiles among clusters, if that can be: `givers` of each have `each` sums of a tile. Returns the memory
// in which they leave them.
inline std::optional<Tensor> share_tiles(Tiles& tiles, sm90::Meeting& meeting, int clusters, int givers, int each,
                                         const ScaledMM& p) {
  const Share share(tiles.count(), clusters, tiles.steps);
  if (share.sharers == 0 || share.sharers * givers > kMeetingFlags) return {};
  if ((tiles.count() - share.whole) * tiles.steps * share.sharers > 2147483647) return {};
  uint8_t* const flags = meeting_flags(p.device, p.stream);
  if (!flags) return {};
  Tensor sums = new_tensor(p.device, {share.sharers * givers * each}, ScalarType::Float);
  tiles.whole = static_cast<int>(share.whole);
  tiles.sharers = static_cast<int>(share.sharers);
  meeting = {static_cast<float4*>(sums.data_ptr()), flags};
  return sums;
}

}  // namespace qcore_cuda
