// Loss and gradient in one pass over the candidates, on a CPU.
#pragma once

#include "../problem.h"

namespace sce_fast {

// Whether ATen's brgemm multiplies float32 tiles on this processor.
bool has_brgemm();

// Tiles are multiplied by brgemm or, without it, by plain loops. Results are the same bits for any number of threads.
void sce_forward(const Problem& problem, const Solution& solution, bool brgemm, int threads);

}  // namespace sce_fast
