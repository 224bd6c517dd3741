// One tile and 64 rows: each of the forward pass's two products alone, so that a test on a new GPU, compiler or driver
// can tell which of them is wrong.
#include "sm90_tiles.h"
#include "solve.h"

namespace sce_fast {
namespace {

struct Step {
  Pass pass;  // 64 students
  const void* weights;
  float *products, *outputs;
};

// Row and column of the product's element that accumulator i of this thread holds.
SCE_FAST_DEVICE int row_of(int i) {
  return ptx::thread_index() / kWarpSize * 16 + ptx::thread_index() % kWarpSize / 4 + i % 4 / 2 * 8;
}
SCE_FAST_DEVICE int column_of(int i) { return i / 4 * 8 + ptx::thread_index() % 4 * 2 + i % 2; }

template <class T, int kDim, int kTile>
__global__ void __launch_bounds__(kGroupThreads, 1)
    sm90_products(const __grid_constant__ Step step, const __grid_constant__ ptx::TensorMap candidates) {
  const Layout<kDim, kTile, 1> at;
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_init(at.filled(0), 1);
    ptx::mbarrier_init_fence();
    at.start_tile(0, candidates, 0, 0);
  }
  copy_rows<T, kDim>(step.pass, row_list(step.pass, 0), 0, at.rows(0));
  ptx::barrier();
  ptx::mbarrier_wait(at.filled(0), 0);

  float products[kTile / 2], outputs[kDim / 2] = {};
  ptx::product_fence();
  multiply_rows<T, kDim, kTile>(products, at.rows(0), at.tile(0));
  ptx::product_wait<0>();
  ptx::pin(products);
#pragma unroll
  for (int i = 0; i < kTile / 2; ++i) step.products[row_of(i) * kTile + column_of(i)] = products[i];

  uint32_t weights[kTile / 16][4];
#pragma unroll
  for (int i = 0; i < kTile / 4; ++i) {
    const int64_t place = row_of(2 * i) * kTile + column_of(2 * i);
    weights[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(step.weights) + place);
  }
  ptx::pin(weights);
  ptx::pin(outputs);
  ptx::product_fence();
  multiply_weights<T, kDim, kTile>(outputs, weights, at.tile(0));
  ptx::product_wait<0>();
  ptx::pin(outputs);
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i)
    if (column_of(i) < step.pass.dim()) step.outputs[row_of(i) * step.pass.dim() + column_of(i)] = outputs[i];
}

template <class T, int kConfig>
void launch_config(const Step& step, void* stream) {
  constexpr HopperConfig c = kHopperConfigs[kConfig];
  const Segment& segment = step.pass.segments[0];
  ptx::launch({"sm90_products",
               {1, 1, 1},
               kGroupThreads,
               static_cast<uint32_t>(HopperConfig{c.dim, c.tile, 1, false}.shared_bytes()),
               stream},
              sm90_products<T, c.dim, c.tile>, step,
              ptx::make_tensor_map<T>(segment.data, step.pass.problem.dim, segment.rows, 1, c.tile));
}

template <class T>
void launch_type(const Step& step, int config, void* stream) {
  switch (config) {
    case 0: return launch_config<T, 0>(step, stream);
    case 1: return launch_config<T, 1>(step, stream);
    case 2: return launch_config<T, 2>(step, stream);
    case 3: return launch_config<T, 3>(step, stream);
  }
}

}  // namespace

int32_t sm90_tile(int32_t dim) {
  return kHopperConfigs[config_index(kHopperConfigs, dim, {1, std::numeric_limits<int32_t>::max(), 90})].tile;
}

void multiply_one_tile(const Matrix& rows, const Matrix& candidates, int32_t dim, const void* weights, float* products,
                       float* outputs, void* stream) {
  const int32_t config = config_index(kHopperConfigs, dim, {1, std::numeric_limits<int32_t>::max(), 90});
  if (rows.rows != kGroupRows || candidates.rows < 1 || candidates.rows > kHopperConfigs[config].tile)
    throw std::invalid_argument(std::to_string(rows.rows) + " rows and " + std::to_string(candidates.rows) +
                                " candidates, expected 64 rows and 1 to " +
                                std::to_string(kHopperConfigs[config].tile) + " candidates");
  Pass pass;
  Problem& p = pass.problem;
  p.query = rows, p.query_views = 1, p.batch = kGroupRows, p.dim = dim;
  pass.segments[0] = {candidates.data, static_cast<int32_t>(candidates.rows)};
  const Step step{pass, weights, products, outputs};
  if (candidates.type == Type::kFloat16)
    launch_type<Float16>(step, config, stream);
  else
    launch_type<BFloat16>(step, config, stream);
}

}  // namespace sce_fast
