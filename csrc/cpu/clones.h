// Functions compiled for several instruction sets. The fastest one that this processor runs is chosen when the library
// is loaded. Without fused multiply-adds (see setup.py), loops over independent values give the same bits on all of
// them. Sums over vector lanes and explicitly fused operations may differ.
#pragma once

#define SCE_FAST_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SCE_FAST_X86 1
#define SCE_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// For functions whose source differs between instruction sets.
#define SCE_FAST_AVX2 __attribute__((target("arch=x86-64-v3")))
#define SCE_FAST_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#else
#define SCE_FAST_X86 0
#define SCE_FAST_CLONES
#endif
