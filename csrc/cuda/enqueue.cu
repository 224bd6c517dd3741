// Writes the newest keys into the ring of past keys: normalise, round to the ring's type, write, advance the cursor.
#include "pass.h"
#include "solve.h"

namespace sce_fast {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;
// As in torch.nn.functional.normalize, a shorter row is divided by this length.
constexpr float kShortest = 1e-12f;

// One warp for each row.
__global__ void __launch_bounds__(kThreads) enqueue_rows(Ring ring, Matrix rows, bool normalize) {
  const int lane = ptx::thread_index() % kWarpSize;
  const int64_t kept = rows.rows < ring.size ? rows.rows : ring.size;
  const int64_t offset = static_cast<int64_t>(ptx::block_index().x) * kWarps + ptx::thread_index() / kWarpSize;
  if (offset >= kept) return;
  const int64_t from = rows.rows - kept + offset, to = (*ring.cursor + from) % ring.size;
  float length = 1.f;
  if (normalize) {
    float squares = 0.f;
    for (int64_t d = lane; d < ring.dim; d += kWarpSize) {
      const float x = load_number(rows.data, rows.type, from * ring.dim + d);
      squares += x * x;
    }
    length = sqrtf(warp_sum(squares));
    if (length < kShortest) length = kShortest;  // NaN stays NaN
  }
  for (int64_t d = lane; d < ring.dim; d += kWarpSize) {
    const float x = load_number(rows.data, rows.type, from * ring.dim + d);
    store_number(ring.keys, ring.type, to * ring.dim + d, normalize ? x / length : x);
  }
}

// A separate launch, so that all blocks of enqueue_rows have read the cursor when it starts.
__global__ void __launch_bounds__(kWarpSize) advance_cursor(Ring ring, int64_t rows) {
  if (ptx::thread_index() == 0) *ring.cursor = (*ring.cursor + rows) % ring.size;
}

}  // namespace

void enqueue(const Ring& ring, const Matrix& rows, bool normalize, void* stream) {
  if (rows.rows == 0) return;
  const int64_t kept = std::min(rows.rows, ring.size);
  ptx::launch({"enqueue_rows", {static_cast<uint32_t>(ceil_div(kept, kWarps)), 1, 1}, kThreads, 0, stream},
              enqueue_rows, ring, rows, normalize);
  ptx::launch({"advance_cursor", {1, 1, 1}, kWarpSize, 0, stream}, advance_cursor, ring, rows.rows);
}

}  // namespace sce_fast
