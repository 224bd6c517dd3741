// Memory of a kernel: aligned to a cache line, uninitialised.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sce_fast {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> allocate(int64_t count) {
  constexpr size_t kLine = 64;
  void* memory = std::aligned_alloc(kLine, (static_cast<size_t>(count) * sizeof(T) / kLine + 1) * kLine);
  if (!memory) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(memory));
}

}  // namespace sce_fast
