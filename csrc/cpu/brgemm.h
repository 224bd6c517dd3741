// ATen's matrix product for tiles, brgemm. It is looked up in the torch that the process has loaded, so that this module
// is built without torch and serves every release.
#pragma once

#include <cstdint>

namespace sce_fast {

// Functions of at::native::cpublas; `pairs` says that rows k and k + 1 of b are side by side.
struct Brgemm {
  using Product = void (*)(int64_t rows, int64_t columns, int64_t inner, int64_t a_stride, int64_t b_stride,
                           int64_t out_stride, bool accumulate, const void* a, const void* b, float* out, bool pairs);
  Product float32 = nullptr, bfloat16 = nullptr;
  void (*release)(bool pairs) = nullptr;  // frees what brgemm keeps for the calling thread
};

// Returns the functions, or null if no torch is loaded or its functions have other parameters.
const Brgemm* find_brgemm();

// Returns whether this processor and its operating system have AMX tiles of bfloat16. A hypervisor may hide them.
bool has_amx();

// Returns whether AMD made this processor.
bool is_amd();

}  // namespace sce_fast
