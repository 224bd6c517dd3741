// Hopper's forward pass with the other choice of turns, or with clusters, for the comparisons in the acceptance run.
#include "sm90_forward_pass.h"

namespace sce_fast {
namespace {

template <int kConfig>
void launch_variant(const Pass& pass, void* stream) {
  static_assert(kHasVariants[kConfig]);
  constexpr bool kTurns = kHopperConfigs[kConfig].turns;
  if (pass.cluster > 1)
    launch_config<BFloat16, true, kTurns, true, kConfig>(pass, stream);
  else
    launch_config<BFloat16, true, !kTurns, false, kConfig>(pass, stream);
}

}  // namespace

void sm90::forward_variant(const Pass& pass, int32_t config, void* stream) {
  switch (config) {
    case 0: return launch_variant<0>(pass, stream);
    case 1: return launch_variant<1>(pass, stream);
    case 3: return launch_variant<3>(pass, stream);
  }
}

}  // namespace sce_fast
