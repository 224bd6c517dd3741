// checks NAME SEED: runs a small kernel, right or wrong, for the tests of the emulator itself. Prints "right" or
// "wrong"; a mistake that the emulator finds ends the process before.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ptx.cuh"

using namespace sce_fast;
using namespace sce_fast::ptx;

namespace {

// ---------------------------------------------------------------------------------------------- synchronisation

constexpr int kThreads = 64;

// Each thread copies 16 bytes and reads the bytes of the thread across the block.
template <int kPending, bool kWaits, bool kBarrier>
void exchange(const Chunk* from, float* to) {
  const uint32_t mine = thread_index(), other = kThreads - 1 - mine;
  copy_async(shared_memory() + mine * 16, from + mine, mine % 2 == 0);
  copy_async_commit();
  if (kWaits) copy_async_wait<kPending>();
  if (kBarrier) barrier();
  to[mine] = load_shared(shared_memory() + other * 16);
  copy_async_wait<0>();
}

// Each thread reads, then copies over what other threads read.
template <bool kBarrier>
void overwrite(const Chunk* from, float* to) {
  const uint32_t mine = thread_index(), other = kThreads - 1 - mine;
  store_shared(shared_memory() + mine * 16, from[mine]);
  barrier();
  to[mine] = load_shared(shared_memory() + other * 16);
  if (kBarrier) barrier();
  copy_async(shared_memory() + mine * 16, from, true);
  copy_async_commit();
  copy_async_wait<0>();
}

void half_ends(const Chunk*, float* to) {
  to[thread_index()] = 0.f;
  if (thread_index() >= 32) return;
  barrier();
}

void lanes_disagree(const Chunk*, float* to) {
  to[thread_index()] = thread_index() % 2 ? shuffle_xor(1.f, 1) : 0.f;
  barrier();
}

void two_operations(const Chunk*, float* to) {
  uint32_t words[4];
  if (thread_index() % 2)
    to[thread_index()] = shuffle_xor(1.f, 1);
  else
    load_matrices(words, shared_memory());
}

void ends_early(const Chunk* from, float*) {
  copy_async(shared_memory() + thread_index() * 16, from, true);
  copy_async_commit();
}

void beyond_shared(const Chunk* from, float*) { store_shared(shared_memory() + (thread_index() + 1) * 16, *from); }
void unaligned(const Chunk* from, float*) { store_shared(shared_memory() + thread_index() * 8, *from); }
void beyond_global(const Chunk*, float* to) { to[thread_index() + 1] = 0.f; }

bool run_exchange(void (*kernel)(const Chunk*, float*), bool zero_filled, uint64_t) {
  std::vector<Chunk> from(kThreads);
  std::vector<float> to(kThreads, -1.f);
  for (int t = 0; t < kThreads; ++t) {
    const float value = static_cast<float>(t + 1);
    for (auto& word : from[t].words) memcpy(&word, &value, 4);
  }
  launch({"check", {1, 1, 1}, kThreads, kThreads * 16, nullptr}, kernel, from.data(), to.data());
  bool right = true;
  for (int t = 0; t < kThreads; ++t) {
    const int other = kThreads - 1 - t;
    right &= to[t] == (zero_filled && other % 2 ? 0.f : static_cast<float>(other + 1));
  }
  return right;
}

// ---------------------------------------------------------------------------------------------- layouts

struct Product {
  float a[16][16], b[16][8], c[16][8];  // c = a b, in small whole numbers: exact
};

Product random_product(uint64_t seed) {
  srand(static_cast<unsigned>(seed));
  Product p{};
  for (auto& row : p.a)
    for (float& x : row) x = static_cast<float>(rand() % 17 - 8);
  for (auto& row : p.b)
    for (float& x : row) x = static_cast<float>(rand() % 17 - 8);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 16; ++k) p.c[i][j] += p.a[i][k] * p.b[k][j];
  return p;
}

// Fills the fragments by the tables of the PTX ISA, without ldmatrix.
template <class T>
void multiply_by_hand(const Product* p, float* result) {
  const uint32_t lane = thread_index(), g = lane / 4, t = lane % 4 * 2;
  const uint32_t a[4] = {pack<T>(p->a[g][t], p->a[g][t + 1]), pack<T>(p->a[g + 8][t], p->a[g + 8][t + 1]),
                         pack<T>(p->a[g][t + 8], p->a[g][t + 9]), pack<T>(p->a[g + 8][t + 8], p->a[g + 8][t + 9])};
  float c[4] = {1.f, 1.f, 1.f, 1.f};
  multiply_add<T>(c, a, pack<T>(p->b[t][g], p->b[t + 1][g]), pack<T>(p->b[t + 8][g], p->b[t + 9][g]));
  result[g * 8 + t] = c[0], result[g * 8 + t + 1] = c[1];
  result[(g + 8) * 8 + t] = c[2], result[(g + 8) * 8 + t + 1] = c[3];
}

// Fills the fragments by ldmatrix: a by rows; b by columns (as it is) or by rows (transposed).
template <class T, bool kTransposed>
void multiply_by_matrices(const Product* p, float* result) {
  const uint32_t lane = thread_index(), g = lane / 4, t = lane % 4 * 2;
  const Shared a_rows = shared_memory(), b_rows = a_rows + 16 * 32;  // rows of 16 numbers
  const auto store_row = [&](Shared to, auto number) {
    for (int half = 0; half < 2; ++half) {
      Chunk chunk;
      for (int w = 0; w < 4; ++w) chunk.words[w] = pack<T>(number(half * 8 + w * 2), number(half * 8 + w * 2 + 1));
      store_shared(to + half * 16, chunk);
    }
  };
  if (lane < 16) {
    store_row(a_rows + lane * 32, [&](int k) { return p->a[lane][k]; });
    store_row(b_rows + lane * 32, [&](int k) {
      if (kTransposed) return k < 8 ? p->b[lane][k] : 0.f;  // row: depth
      return lane < 8 ? p->b[k][lane] : 0.f;                // row: column
    });
  }
  barrier();
  uint32_t a[4], b[4];
  load_matrices(a, a_rows + lane % 16 * 32 + lane / 16 * 16);
  if (kTransposed)
    load_matrices_transposed(b, b_rows + lane % 16 * 32 + lane / 16 * 16);
  else
    load_matrices(b, b_rows + (lane / 16 * 8 + lane % 8) * 32 + lane / 8 % 2 * 16);
  float c[4] = {1.f, 1.f, 1.f, 1.f};
  multiply_add<T>(c, a, b[0], b[1]);
  result[g * 8 + t] = c[0], result[g * 8 + t + 1] = c[1];
  result[(g + 8) * 8 + t] = c[2], result[(g + 8) * 8 + t + 1] = c[3];
}

bool run_product(void (*kernel)(const Product*, float*), uint64_t seed) {
  const Product p = random_product(seed);
  std::vector<float> result(16 * 8);
  launch({"check", {1, 1, 1}, 32, 16 * 32 * 2, nullptr}, kernel, &p, result.data());
  bool right = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) right &= result[i * 8 + j] == p.c[i][j] + 1.f;
  return right;
}

// Compares each word of ldmatrix.x4 with its definition.
template <bool kTransposed>
void load_numbered(const Product*, float* result) {
  const uint32_t lane = thread_index();
  Chunk row;  // row r of matrix m holds 64 m + 8 r + column
  for (uint32_t w = 0; w < 4; ++w) row.words[w] = (lane * 8 + 2 * w) | (lane * 8 + 2 * w + 1) << 16;
  store_shared(shared_memory() + lane * 16, row);
  barrier();
  uint32_t words[4];
  if (kTransposed)
    load_matrices_transposed(words, shared_memory() + lane * 16);
  else
    load_matrices(words, shared_memory() + lane * 16);
  for (uint32_t m = 0; m < 4; ++m) {
    const uint32_t r = lane / 4, c = lane % 4 * 2;
    const uint32_t first = 64 * m + (kTransposed ? 8 * c + r : 8 * r + c), step = kTransposed ? 8 : 1;
    result[lane * 4 + m] = words[m] == (first | (first + step) << 16) ? 1.f : 0.f;
  }
}

bool run_load(void (*kernel)(const Product*, float*), uint64_t) {
  std::vector<float> result(128);
  launch({"check", {1, 1, 1}, 32, 32 * 16, nullptr}, kernel, static_cast<const Product*>(nullptr), result.data());
  for (const float x : result)
    if (x != 1.f) return false;
  return true;
}

// ---------------------------------------------------------------------------------------------- numbers

bool rounds_like_the_type(uint64_t seed) {
  srand(static_cast<unsigned>(seed));
  for (int i = 0; i < 100000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(rand()) << 16 ^ static_cast<uint32_t>(rand());
    float x;
    memcpy(&x, &bits, 4);
    if (!(std::abs(x) < 3.38e38f)) continue;  // a NaN, or it becomes infinite
    // the two neighbours of x in bf16: none is nearer than what was chosen
    const uint16_t chosen = static_cast<uint16_t>(pack<BFloat16>(x, 0.f));
    const double error = std::abs(double(to_float(BFloat16{chosen})) - x);
    for (const int step : {-1, 1}) {
      const uint16_t neighbour = static_cast<uint16_t>(chosen + step);
      if ((neighbour ^ chosen) & 0x8000) continue;  // another sign
      if (std::abs(double(to_float(BFloat16{neighbour})) - x) < error) return false;
    }
  }
  return exp2(-126.f) > 0.f && exp2(-127.f) == 0.f && exp2(-std::numeric_limits<float>::infinity()) == 0.f &&
         exp2(3.f) == 8.f && std::isnan(exp2(std::nanf(""))) && std::isnan(to_float(Float16{0xFFFF})) &&
         std::isnan(to_float(BFloat16{0xFFFF})) && std::isnan(to_float(BFloat16{round_to<BFloat16>(std::nanf(""))}));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const uint64_t seed = std::strtoull(arguments[2], nullptr, 10);
  emulator::set_seed(seed);
  const std::map<std::string, std::function<bool()>> checks{
      {"exchange", [&] { return run_exchange(&exchange<0, true, true>, true, seed); }},
      {"no wait", [&] { return run_exchange(&exchange<0, false, true>, true, seed); }},
      {"wait for too few", [&] { return run_exchange(&exchange<1, true, true>, true, seed); }},
      {"no barrier", [&] { return run_exchange(&exchange<0, true, false>, true, seed); }},
      {"overwrite", [&] { return run_exchange(&overwrite<true>, false, seed); }},
      {"overwrite without barrier", [&] { return run_exchange(&overwrite<false>, false, seed); }},
      {"half ends", [&] { return run_exchange(&half_ends, false, seed); }},
      {"lanes disagree", [&] { return run_exchange(&lanes_disagree, false, seed); }},
      {"two operations", [&] { return run_exchange(&two_operations, false, seed); }},
      {"ends early", [&] { return run_exchange(&ends_early, false, seed); }},
      {"beyond shared", [&] { return run_exchange(&beyond_shared, false, seed); }},
      {"unaligned", [&] { return run_exchange(&unaligned, false, seed); }},
      {"beyond global", [&] { return run_exchange(&beyond_global, false, seed); }},
      {"mma bf16", [&] { return run_product(&multiply_by_hand<BFloat16>, seed); }},
      {"mma fp16", [&] { return run_product(&multiply_by_hand<Float16>, seed); }},
      {"ldmatrix mma", [&] { return run_product(&multiply_by_matrices<BFloat16, false>, seed); }},
      {"ldmatrix.trans mma", [&] { return run_product(&multiply_by_matrices<Float16, true>, seed); }},
      {"ldmatrix", [&] { return run_load(&load_numbered<false>, seed); }},
      {"ldmatrix.trans", [&] { return run_load(&load_numbered<true>, seed); }},
      {"numbers", [&] { return rounds_like_the_type(seed); }},
  };
  const auto found = checks.find(arguments[1]);
  if (found == checks.end()) return 2;
  puts(found->second() ? "right" : "wrong");
}
