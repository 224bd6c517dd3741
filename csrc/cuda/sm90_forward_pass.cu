// The forward pass on Hopper as it runs by default.
#include "sm90_forward_pass.h"

namespace sce_fast {
namespace {

template <class T, bool kFixed, int kConfig>
void launch_default(const Pass& pass, void* stream) {
  launch_config<T, kFixed, kHopperConfigs[kConfig].turns, false, kConfig>(pass, stream);
}

template <class T, bool kFixed>
void launch_type(const Pass& pass, int config, void* stream) {
  switch (config) {
    case 0: return launch_default<T, kFixed, 0>(pass, stream);
    case 1: return launch_default<T, kFixed, 1>(pass, stream);
    case 2: return launch_default<T, kFixed, 2>(pass, stream);
    case 3: return launch_default<T, kFixed, 3>(pass, stream);
  }
}

}  // namespace

void sm90::forward_pass(const Pass& pass, Type product, bool fixed_shift, int32_t config, void* stream) {
  with_arithmetic(product, fixed_shift, [&]<class T, bool kFixed>() { launch_type<T, kFixed>(pass, config, stream); });
}

}  // namespace sce_fast
