// emulate solve INPUT OUTPUT SEED KERNEL SPLITS MULTIPROCESSORS SHARED_BYTES CAPABILITY TURNS UNEVEN CLUSTERS
// emulate enqueue|products INPUT OUTPUT SEED
// Calls the host interface with its kernels emulated; emulated.py writes the input and reads the output.
// emulate cut ROW_BLOCKS TILES MULTIPROCESSORS: prints the parts of an uneven cut, block by block: block, block of rows,
// split, first tile, end.
// emulate splits BLOCKS TILES RESIDENT: prints the chosen number of splits.
// emulate kernel WANTED GPU 0: prints the kernel for a GPU of this compute capability: 1 for sm80, 2 for sm90.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulator.h"
#include "pass.h"
#include "solve.h"

using namespace sce_fast;

namespace {

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}

  // Reads a line "NAME VALUE", which must have the expected name.
  template <class T>
  T field(const char* name) {
    std::string found, value;
    file_ >> found >> value;
    file_.get();  // the end of the line
    if (!file_ || found != name) {
      fprintf(stderr, "the input has field '%s', expected '%s'\n", found.c_str(), name);
      exit(2);
    }
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(std::stod(value));
    return static_cast<T>(std::stoll(value));
  }

  // Returns an allocation of exactly this size, so that the sanitizer sees a read beyond it.
  std::vector<char> bytes(int64_t count) {
    std::vector<char> result(static_cast<size_t>(count));
    file_.read(result.data(), count);
    if (!file_) {
      fprintf(stderr, "the input file is too short\n");
      exit(2);
    }
    return result;
  }

 private:
  std::ifstream file_;
};

class Output {
 public:
  explicit Output(int64_t bytes) : data(static_cast<size_t>(bytes), '\xFF') {}  // NaN until it is written
  std::vector<char> data;
};

struct Rows {
  Type type;
  int64_t rows;
  std::vector<char> data;
  Matrix matrix() const { return {data.data(), type, rows}; }
};

Rows read_rows(Reader& in, int64_t dim) {
  Rows result;
  result.type = in.field<Type>("type");
  result.rows = in.field<int64_t>("rows");
  result.data = in.bytes(result.rows * dim * bytes_of(result.type));
  return result;
}

void write(const char* path, const std::vector<const std::vector<char>*>& parts) {
  std::ofstream file(path, std::ios::binary);
  for (const auto* part : parts) file.write(part->data(), static_cast<std::streamsize>(part->size()));
}

Problem read_problem(Reader& in) {
  Problem p;
  for (const auto& [name, size] : {std::pair{"query_views", &p.query_views}, std::pair{"key_views", &p.key_views},
                                   std::pair{"batch_key_views", &p.batch_key_views}, std::pair{"batch", &p.batch},
                                   std::pair{"dim", &p.dim}, std::pair{"row_offset", &p.row_offset}})
    *size = in.field<int64_t>(name);
  for (const auto& [name, flag] :
       {std::pair{"same_views", &p.same_views}, std::pair{"zero_logit", &p.zero_logit},
        std::pair{"needs_gradient", &p.needs_gradient}, std::pair{"needs_target", &p.needs_target}})
    *flag = in.field<int64_t>(name) != 0;
  for (const auto& [name, number] :
       {std::pair{"temperature", &p.temperature}, std::pair{"target_temperature", &p.target_temperature},
        std::pair{"coefficient", &p.coefficient}})
    *number = in.field<float>(name);
  return p;
}

void solve_file(Reader in, const char* to, Kernel kernel, int splits, const Limits& limits, const Tuning& tuning) {
  Problem p = read_problem(in);
  const std::vector<char> scalars = in.bytes(in.field<int64_t>("scalars") * 4);
  if (!scalars.empty()) p.scalars = reinterpret_cast<const float*>(scalars.data());
  const Rows query = read_rows(in, p.dim), key = read_rows(in, p.dim), queue = read_rows(in, p.dim),
             batch_keys = read_rows(in, p.dim);
  p.query = query.matrix(), p.key = key.matrix(), p.queue = queue.matrix(), p.batch_keys = batch_keys.matrix();

  const Plan cut = plan(p, limits, kernel, splits, tuning);
  Output workspace(cut.workspace_bytes), rows(p.batch * 4), probability(p.batch * 4),
      entropy(p.key_views * p.batch * 4),
      gradient(p.needs_gradient ? p.query_views * p.batch * p.dim * bytes_of(query.type) : 0);
  const auto floats = [](Output& output) { return reinterpret_cast<float*>(output.data.data()); };
  solve(p,
        {.rows = floats(rows),
         .gradient = p.needs_gradient ? gradient.data.data() : nullptr,
         .gradient_type = query.type,
         .target_entropy = floats(entropy),
         .positive_probability = floats(probability)},
        cut, workspace.data.data(), nullptr);
  write(to, {&rows.data, &gradient.data, &entropy.data, &probability.data});
}

void print_cut(int32_t row_blocks, int32_t tiles, int32_t multiprocessors) {
  const Cut cut{std::min(multiprocessors, row_blocks * tiles), row_blocks, tiles};
  for (int32_t block = 0; block < cut.blocks; ++block) {
    const Range row_blocks = cut.row_blocks_of(block);
    for (int32_t rows = row_blocks.begin; rows < row_blocks.end; ++rows) {
      const Range range = cut.range(block, rows);
      if (range.begin < range.end)
        printf("%d %d %d %d %d\n", block, rows, block - cut.first_block(rows), range.begin, range.end);
    }
  }
}

void enqueue_file(Reader in, const char* to) {
  const int64_t dim = in.field<int64_t>("dim"), normalize = in.field<int64_t>("normalize");
  int64_t cursor = in.field<int64_t>("cursor");
  Rows ring = read_rows(in, dim);
  const Rows rows = read_rows(in, dim);
  enqueue({ring.data.data(), ring.type, ring.rows, dim, &cursor}, rows.matrix(), normalize != 0, nullptr);
  std::vector<char> end(8);
  memcpy(end.data(), &cursor, 8);
  write(to, {&ring.data, &end});
}

void products_file(Reader in, const char* to) {
  const int64_t dim = in.field<int64_t>("dim");
  const Rows rows = read_rows(in, dim), candidates = read_rows(in, dim);
  const int32_t tile = sm90_tile(static_cast<int32_t>(dim));
  const Rows weights = read_rows(in, tile);
  Output products(rows.rows * tile * 4), outputs(rows.rows * dim * 4);
  multiply_one_tile(rows.matrix(), candidates.matrix(), static_cast<int32_t>(dim), weights.data.data(),
                    reinterpret_cast<float*>(products.data.data()), reinterpret_cast<float*>(outputs.data.data()),
                    nullptr);
  write(to, {&products.data, &outputs.data});
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  const std::string what = arguments[1];
  if (what == "splits") {
    printf("%d\n", choose_splits(atoll(arguments[2]), atoll(arguments[3]), atoll(arguments[4])));
    return 0;
  }
  if (what == "cut") {
    print_cut(atoi(arguments[2]), atoi(arguments[3]), atoi(arguments[4]));
    return 0;
  }
  emulator::set_seed(std::strtoull(arguments[4], nullptr, 10));
  try {
    if (what == "kernel") {
      const Limits limits{132, 227 << 10, atoi(arguments[3])};
      printf("%d\n", static_cast<int>(choose_kernel(static_cast<Kernel>(atoi(arguments[2])), limits)));
      return 0;
    }
    if (what == "solve" && count == 13)
      solve_file(Reader(arguments[2]), arguments[3], static_cast<Kernel>(atoi(arguments[5])), atoi(arguments[6]),
                 {atoi(arguments[7]), atoi(arguments[8]), atoi(arguments[9])},
                 {static_cast<Choice>(atoi(arguments[10])), static_cast<Choice>(atoi(arguments[11])),
                  static_cast<Choice>(atoi(arguments[12]))});
    else if (what == "products")
      products_file(Reader(arguments[2]), arguments[3]);
    else if (what == "enqueue")
      enqueue_file(Reader(arguments[2]), arguments[3]);
    else
      return 2;
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    return 4;
  }
}
