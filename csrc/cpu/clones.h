// Functions marked so are compiled for several instruction sets; the fastest one that this processor runs is chosen
// when the library is loaded. Without fused multiply-adds (see setup.py) loops over independent values give the same
// bits in all of them; sums over vector lanes need not.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SCE_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SCE_FAST_CLONES
#endif
