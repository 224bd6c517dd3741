// From the problem to its launches: what is checked, how the workspace is laid out. No kernel here.
#include <limits>
#include <string>

#include "pass.h"
#include "solve.h"

namespace sce_fast {
namespace {

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

Type product_type(const Problem& p) { return p.queue.rows > 0 ? p.queue.type : p.batch_keys.type; }

void check(const CudaProblem& p) {
  require(p.query_views > 0 && p.key_views > 0 && p.batch > 0, "expected at least one view and one row");
  require(p.query.rows == p.query_views * p.batch,
          "query has " + std::to_string(p.query.rows) + " rows, expected " + std::to_string(p.query_views * p.batch));
  require(p.key.rows == p.key_views * p.batch,
          "key has " + std::to_string(p.key.rows) + " rows, expected " + std::to_string(p.key_views * p.batch));
  require(p.queue.rows + p.batch_keys.rows > 0, "expected a queue or batch keys");
  require(p.batch_keys.rows == 0 || p.batch_key_views == 1 || p.batch_key_views == p.key_views,
          "batch_key_views is " + std::to_string(p.batch_key_views) + ", expected 1 or the number of key views, " +
              std::to_string(p.key_views));
  require(product_type(p) != Type::kFloat32, "candidates are float32, expected bfloat16 or float16");
  require(p.queue.rows == 0 || p.batch_keys.rows == 0 || p.queue.type == p.batch_keys.type,
          "queue and batch keys are of different types, expected one");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  for (const auto& [rows, name] : {std::pair{p.query.rows + p.key.rows, "query and key"},
                                   std::pair{p.queue.rows, "queue"}, std::pair{p.batch_keys.rows, "batch_keys"}})
    require(rows <= kMost, std::string(name) + " has " + std::to_string(rows) + " rows, expected at most 2^30");
}

bool per_view_keys(const CudaProblem& p) { return p.batch_keys.rows > 0 && p.batch_key_views > 1; }

int64_t partials_of(const PassPlan& plan) { return plan.views * plan.splits * plan.rows; }

// The part of the workspace that partial sums take, padded so that the outputs behind them are aligned.
int64_t partial_bytes(const PassPlan& plan) {
  return ceil_div(partials_of(plan) * static_cast<int64_t>(sizeof(Partial)), 16) * 16;
}

int64_t workspace_bytes(const PassPlan& plan, int64_t dim) { return partial_bytes(plan) + partials_of(plan) * dim * 4; }

// What the number of splits depends on.
struct Shape {
  int32_t config, block_rows, tile, resident_blocks;
};

Shape shape_of(const CudaProblem& p, Kernel kernel, const Limits& limits) {
  const auto dim = static_cast<int32_t>(p.dim);
  if (kernel == Kernel::kSm90) {
    const int32_t config = config_index(kHopperConfigs, dim, limits);
    return {config, kHopperRows, kHopperConfigs[config].tile, 1};
  }
  const int32_t config = config_index(kConfigs, dim, limits);
  return {config, kConfigs[config].rows, kConfigs[config].tile, resident_blocks(kConfigs[config], limits)};
}

PassPlan plan_pass(const Shape& shape, int64_t rows, int64_t views, std::initializer_list<int64_t> segments,
                   const Limits& limits, int32_t splits) {
  int64_t tiles = 0;
  for (const int64_t candidates : segments) tiles += ceil_div(candidates, shape.tile);
  if (tiles == 0) return {};
  if (splits == 0)
    splits =
        choose_splits(ceil_div(rows, shape.block_rows) * views, tiles, limits.multiprocessors * shape.resident_blocks);
  return {shape.config, splits, rows, views};
}

}  // namespace

Plan make_plan(const CudaProblem& p, const Limits& limits, Kernel kernel, int32_t splits) {
  check(p);
  Plan plan;
  plan.kernel = choose_kernel(kernel, limits);
  const Shape shape = shape_of(p, plan.kernel, limits);
  const bool per_view = per_view_keys(p);
  const int64_t teachers = p.needs_target ? p.batch : 0, batch_keys = p.batch_keys.rows;
  plan.shared = plan_pass(shape, p.query.rows + teachers * p.key_views, 1, {per_view ? 0 : batch_keys, p.queue.rows},
                          limits, splits);
  if (per_view)
    plan.per_view = plan_pass(shape, p.query.rows + teachers, p.key_views, {batch_keys / p.key_views}, limits, splits);
  const float coldest = p.needs_target ? std::min(p.temperature, p.target_temperature) : p.temperature;
  plan.fixed_shift =
      product_type(p) == Type::kBFloat16 && p.scalars == nullptr && 2.f * kLog2e / coldest <= kFixedShiftBits;
  plan.workspace_bytes = workspace_bytes(plan.shared, p.dim) + workspace_bytes(plan.per_view, p.dim);
  return plan;
}

void sce_solve(const CudaProblem& p, const CudaSolution& solution, const Plan& plan, void* workspace, void* stream) {
  const auto int32 = [](int64_t x) { return static_cast<int32_t>(x); };
  const bool hopper = plan.kernel == Kernel::kSm90;
  const auto forward = hopper ? sm90_sce_forward_pass : sm80_sce_forward_pass;
  char* free = static_cast<char*>(workspace);
  const auto pass = [&](const PassPlan& cut, bool own_keys, Segment first, Segment second) {
    Pass result{p.query.data,
                p.key.data,
                p.query.type,
                p.key.type,
                int32(p.batch),
                int32(p.dim),
                int32(p.query_views),
                int32(p.key_views),
                p.same_views,
                own_keys,
                p.needs_target,
                solution.gradient != nullptr,
                {first, second},
                p.scalars,
                p.temperature,
                p.target_temperature,
                int32(cut.rows),
                cut.splits,
                reinterpret_cast<Partial*>(free),
                reinterpret_cast<float*>(free + partial_bytes(cut))};
    free += workspace_bytes(cut, p.dim);
    if (cut.splits > 0) forward(result, product_type(p), plan.fixed_shift, cut.config, stream);
    return result;
  };
  const bool own = per_view_keys(p);
  const Segment none{nullptr, 0, -1};
  const Segment batch_keys{p.batch_keys.data, int32(own ? p.batch_keys.rows / p.key_views : p.batch_keys.rows),
                           int32(p.row_offset)};
  const Pass shared = pass(plan.shared, false, own ? none : batch_keys, {p.queue.data, int32(p.queue.rows), -1});
  const Pass per_view = pass(plan.per_view, true, own ? batch_keys : none, none);
  sce_combine(shared, per_view, p, solution, hopper, stream);
}

}  // namespace sce_fast
