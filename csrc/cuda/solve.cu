// From the problem to its launches: checks, the plan, the layout of the workspace. No kernel here.
#include "solve.h"

#include <limits>
#include <numbers>
#include <string>

#include "pass.h"

namespace sce_fast {
namespace {

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

std::string rows_of(int64_t rows) { return std::to_string(rows) + " rows"; }

Type product_type(const Problem& p) { return p.queue.rows > 0 ? p.queue.type : p.batch_keys.type; }

void check(const Problem& p) {
  require(p.query_views > 0 && p.key_views > 0 && p.batch > 0, "expected at least one view and one row");
  require(p.query.rows == p.query_views * p.batch,
          "query has " + rows_of(p.query.rows) + ", expected " + std::to_string(p.query_views * p.batch));
  require(p.key.rows == p.key_views * p.batch,
          "key has " + rows_of(p.key.rows) + ", expected " + std::to_string(p.key_views * p.batch));
  require(p.queue.rows + p.batch_keys.rows > 0, "expected a queue or batch keys");
  require(p.batch_keys.rows == 0 || p.batch_key_views == 1 || p.batch_key_views == p.key_views,
          "batch_key_views is " + std::to_string(p.batch_key_views) + ", expected 1 or the number of key views, " +
              std::to_string(p.key_views));
  require(product_type(p) != Type::kFloat32, "candidates are float32, expected bfloat16 or float16");
  require(p.queue.rows == 0 || p.batch_keys.rows == 0 || p.queue.type == p.batch_keys.type,
          "queue and batch_keys have different types, expected one type");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  for (const auto& [rows, name] : {std::pair{p.query.rows + p.key.rows, "query and key"},
                                   std::pair{p.queue.rows, "queue"}, std::pair{p.batch_keys.rows, "batch_keys"}})
    require(rows <= kMost, std::string(name) + " has " + rows_of(rows) + ", expected at most 2^30");
  for (const auto& [data, name] : {std::pair{p.query.data, "query"}, std::pair{p.key.data, "key"},
                                   std::pair{p.queue.data, "queue"}, std::pair{p.batch_keys.data, "batch_keys"}})
    require(reinterpret_cast<uintptr_t>(data) % 16 == 0,
            std::string(name) + " starts at an address that is not a multiple of 16 bytes");
}

bool per_view_keys(const Problem& p) { return p.batch_keys.rows > 0 && p.batch_key_views > 1; }

int64_t partials_of(const PassPlan& cut) { return cut.views * cut.splits * cut.rows; }

// Bytes of the partial sums, padded so that the outputs after them are aligned.
int64_t partial_bytes(const PassPlan& cut) {
  return ceil_div(partials_of(cut) * static_cast<int64_t>(sizeof(Partial<float>)), 16) * 16;
}

int64_t workspace_bytes(const PassPlan& cut, int64_t dim) { return partial_bytes(cut) + partials_of(cut) * dim * 4; }

// What the number of splits depends on.
struct Shape {
  int32_t config, block_rows, tile, resident_blocks;
};

Shape shape_of(const Problem& p, Kernel kernel, const Limits& limits) {
  const auto dim = static_cast<int32_t>(p.dim);
  if (kernel == Kernel::kSm90) {
    const int32_t config = config_index(kHopperConfigs, dim, limits);
    return {config, kHopperRows, kHopperConfigs[config].tile, 1};
  }
  const int32_t config = config_index(kConfigs, dim, limits);
  return {config, kConfigs[config].rows, kConfigs[config].tile, resident_blocks(kConfigs[config], limits)};
}

// Returns an uneven cut for so many multiprocessors, or an even one (0 blocks) if its arithmetic does not fit 32 bits.
Cut uneven_cut(int64_t rows, int64_t tiles, int64_t multiprocessors) {
  const int64_t row_blocks = ceil_div(rows, kHopperRows), blocks = std::min(multiprocessors, row_blocks * tiles);
  if ((row_blocks * (tiles + Cut::kRowsCost) + 1) * blocks > std::numeric_limits<int32_t>::max()) return {};
  return {static_cast<int32_t>(blocks), static_cast<int32_t>(row_blocks), static_cast<int32_t>(tiles)};
}

int32_t most_splits(const Cut& cut) {
  int32_t most = 0;
  for (int32_t row_block = 0; row_block < cut.row_blocks; ++row_block) most = std::max(most, cut.splits(row_block));
  return most;
}

PassPlan plan_pass(const Shape& shape, int64_t rows, int64_t views, std::initializer_list<int64_t> segments,
                   const Limits& limits, int32_t splits, bool uneven, bool clusters) {
  int64_t tiles = 0;
  for (const int64_t candidates : segments) tiles += ceil_div(candidates, shape.tile);
  if (tiles == 0) return {};
  if (uneven && splits == 0)
    if (const Cut cut = uneven_cut(rows, tiles, limits.multiprocessors); cut.blocks > 0)
      return {shape.config, most_splits(cut), 1, cut.blocks, tiles, rows, views};
  if (splits == 0)
    splits =
        choose_splits(ceil_div(rows, shape.block_rows) * views, tiles, limits.multiprocessors * shape.resident_blocks);
  const int32_t cluster = clusters ? cluster_size(splits) : 1;
  return {shape.config, splits / cluster, cluster, 0, tiles, rows, views};
}

}  // namespace

Plan plan(const Problem& p, const Limits& limits, Kernel kernel, int32_t splits, const Tuning& tuning) {
  check(p);
  Plan result;
  result.kernel = choose_kernel(kernel, limits);
  const Shape shape = shape_of(p, result.kernel, limits);
  const bool per_view = per_view_keys(p);
  const int64_t teachers = p.needs_target ? p.batch : 0, batch_keys = p.batch_keys.rows;
  const float coldest = p.needs_target ? std::min(p.temperature, p.target_temperature) : p.temperature;
  result.fixed_shift = product_type(p) == Type::kBFloat16 && p.scalars == nullptr &&
                       2.f * std::numbers::log2e_v<float> / coldest <= kFixedShiftBits;
  const bool hopper = result.kernel == Kernel::kSm90,
             has_variants = hopper && kHasVariants[shape.config] && result.fixed_shift;
  const bool clusters = hopper && chosen(tuning.clusters, kClustersByDefault && has_variants);
  const bool uneven = hopper && !clusters && chosen(tuning.uneven, kUnevenByDefault);
  result.shared = plan_pass(shape, p.query.rows + teachers * p.key_views, 1, {per_view ? 0 : batch_keys, p.queue.rows},
                            limits, splits, uneven, clusters);
  // The row lists of key views differ in length, which an uneven cut does not know.
  if (per_view)
    result.per_view = plan_pass(shape, p.query.rows + teachers, p.key_views, {batch_keys / p.key_views}, limits, splits,
                                false, clusters);
  if (hopper) {
    const bool by_default = kHopperConfigs[shape.config].turns;
    result.turns = chosen(tuning.turns, by_default);
    const bool variant = result.turns != by_default || clusters;
    require(!variant || (has_variants && !(clusters && result.turns != by_default)),
            std::string("turns is ") + (result.turns ? "yes" : "no") + " and clusters is " + (clusters ? "yes" : "no") +
                "; expected the defaults, or one other choice with bfloat16 candidates, temperatures of at least 0.025 "
                "and D up to 128 or above 192");
  }
  result.workspace_bytes = workspace_bytes(result.shared, p.dim) + workspace_bytes(result.per_view, p.dim);
  return result;
}

void solve(const Problem& p, const Solution& solution, const Plan& plan, void* workspace, void* stream) {
  const auto int32 = [](int64_t x) { return static_cast<int32_t>(x); };
  const bool hopper = plan.kernel == Kernel::kSm90;
  const auto forward_pass = [&](const Pass& pass, const PassPlan& cut) {
    if (!hopper)
      sm80::forward_pass(pass, product_type(p), plan.fixed_shift, cut.config, stream);
    else if (plan.turns == kHopperConfigs[cut.config].turns && cut.cluster == 1)
      sm90::forward_pass(pass, product_type(p), plan.fixed_shift, cut.config, stream);
    else
      sm90::forward_variant(pass, cut.config, stream);
  };
  char* free = static_cast<char*>(workspace);
  const auto run = [&](const PassPlan& cut, bool per_key_view, const Segment& first, const Segment& second) {
    Pass pass;
    pass.problem = p;
    pass.per_key_view = per_key_view;
    pass.segments[0] = first, pass.segments[1] = second;
    pass.rows = int32(cut.rows), pass.splits = cut.splits, pass.cluster = cut.cluster;
    pass.partials = reinterpret_cast<Partial<float>*>(free);
    pass.outputs = reinterpret_cast<float*>(free + partial_bytes(cut));
    free += workspace_bytes(cut, p.dim);
    if (cut.blocks > 0) pass.cut = {cut.blocks, int32(ceil_div(cut.rows, kHopperRows)), int32(cut.tiles)};
    if (cut.splits > 0) forward_pass(pass, cut);
    return pass;
  };
  const bool own = per_view_keys(p);
  const Segment none, queue{p.queue.data, int32(p.queue.rows)};
  const Segment batch_keys{p.batch_keys.data, int32(own ? p.batch_keys.rows / p.key_views : p.batch_keys.rows),
                           int32(p.row_offset)};
  const Pass shared = run(plan.shared, false, own ? none : batch_keys, queue);
  const Pass per_view = run(plan.per_view, true, own ? batch_keys : none, none);
  combine(shared, per_view, solution, hopper, stream);
}

}  // namespace sce_fast
