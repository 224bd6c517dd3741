#include "brgemm.h"

#include <dlfcn.h>

namespace sce_fast {
namespace {

template <typename Function>
bool look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

const Brgemm* find_brgemm() {
  // A mangled name spells out the types of the parameters, so a function that is found can be called as declared.
  static Brgemm functions;
  static const bool found = [] {
    void* torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
    return torch && look_up(torch, "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb", functions.float32) &&
           look_up(torch, "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb", functions.bfloat16) &&
           look_up(torch, "_ZN2at6native7cpublas14brgemm_releaseEb", functions.release);
  }();
  return found ? &functions : nullptr;
}

bool has_amx() {
#ifdef __x86_64__
  return __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

bool is_amd() {
#ifdef __x86_64__
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace sce_fast
