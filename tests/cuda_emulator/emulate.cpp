// emulate solve|enqueue|products INPUT OUTPUT SEED [KERNEL SPLITS MULTIPROCESSORS SHARED_BYTES CAPABILITY]: one call of the host
// interface, its kernels emulated. The files are written and read by emulated.py.
// emulate splits BLOCKS TILES RESIDENT: prints the choice.
// emulate kernel WANTED GPU 0: prints which kernel a GPU of that compute capability gets, 1 for sm80, 2 for sm90.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "emulator.h"
#include "solve.h"

using namespace sce_fast;

namespace {

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}

  template <class T>
  T number() {
    T value;
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }

  // In an allocation of exactly its size, so that the sanitizer sees a read beyond it.
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

int64_t width(Type type) { return type == Type::kFloat32 ? 4 : 2; }

class Output {
 public:
  explicit Output(int64_t bytes) : data(static_cast<size_t>(bytes), '\xFF') {}  // NaN unless it is written
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
  result.type = static_cast<Type>(in.number<int64_t>());
  result.rows = in.number<int64_t>();
  result.data = in.bytes(result.rows * dim * width(result.type));
  return result;
}

void write(const char* path, const std::vector<const std::vector<char>*>& parts) {
  std::ofstream file(path, std::ios::binary);
  for (const auto* part : parts) file.write(part->data(), static_cast<std::streamsize>(part->size()));
}

void solve(Reader in, const char* to, Kernel kernel, int splits, const Limits& limits) {
  CudaProblem p{};
  for (int64_t* size : {&p.query_views, &p.key_views, &p.batch, &p.dim, &p.row_offset, &p.batch_key_views})
    *size = in.number<int64_t>();
  for (bool* flag : {&p.same_views, &p.zero_logit, &p.needs_target}) *flag = in.number<int64_t>() != 0;
  const bool needs_gradient = in.number<int64_t>() != 0, on_device = in.number<int64_t>() != 0;
  std::vector<float> scalars(3);
  for (float& scalar : scalars) scalar = in.number<float>();
  if (on_device)
    p.scalars = scalars.data();
  else
    p.temperature = scalars[0], p.target_temperature = scalars[1], p.coefficient = scalars[2];
  const Rows query = read_rows(in, p.dim), key = read_rows(in, p.dim), queue = read_rows(in, p.dim),
             batch_keys = read_rows(in, p.dim);
  p.query = query.matrix(), p.key = key.matrix(), p.queue = queue.matrix(), p.batch_keys = batch_keys.matrix();

  const Plan plan = make_plan(p, limits, kernel, splits);
  Output workspace(plan.workspace_bytes), rows(p.batch * 4), probability(p.batch * 4),
      entropy(p.key_views * p.batch * 4),
      gradient(needs_gradient ? p.query_views * p.batch * p.dim * width(query.type) : 0);
  const auto floats = [](Output& output) { return reinterpret_cast<float*>(output.data.data()); };
  sce_solve(p, {floats(rows), needs_gradient ? gradient.data.data() : nullptr, floats(entropy), floats(probability)},
            plan, workspace.data.data(), nullptr);
  write(to, {&rows.data, &gradient.data, &entropy.data, &probability.data});
}

void enqueue_rows(Reader in, const char* to) {
  const int64_t dim = in.number<int64_t>(), normalize = in.number<int64_t>();
  int64_t cursor = in.number<int64_t>();
  Rows ring = read_rows(in, dim);
  const Rows rows = read_rows(in, dim);
  enqueue({ring.data.data(), ring.type, ring.rows, dim, &cursor}, rows.matrix(), normalize != 0, nullptr);
  std::vector<char> end(8);
  memcpy(end.data(), &cursor, 8);
  write(to, {&ring.data, &end});
}

void products(Reader in, const char* to) {
  const int64_t dim = in.number<int64_t>();
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
  emulator::set_seed(std::strtoull(arguments[4], nullptr, 10));
  try {
    if (what == "kernel") {
      const Limits limits{132, 227 << 10, atoi(arguments[3])};
      printf("%d\n", static_cast<int>(choose_kernel(static_cast<Kernel>(atoi(arguments[2])), limits)));
      return 0;
    }
    if (what == "solve" && count == 10)
      solve(Reader(arguments[2]), arguments[3], static_cast<Kernel>(atoi(arguments[5])), atoi(arguments[6]),
            {atoi(arguments[7]), atoi(arguments[8]), atoi(arguments[9])});
    else if (what == "products")
      products(Reader(arguments[2]), arguments[3]);
    else if (what == "enqueue")
      enqueue_rows(Reader(arguments[2]), arguments[3]);
    else
      return 2;
  } catch (const std::exception& error) {
    fprintf(stderr, "%s\n", error.what());
    return 4;
  }
}
