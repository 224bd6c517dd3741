// Loss and gradient in one pass over the candidates, on a CPU.
#pragma once

#include "../problem.h"
#include "tile.h"

namespace sce_fast {

// Results are the same bits for any number of threads.
void sce_forward(const Problem& problem, const Solution& solution, Products products, int threads);

}  // namespace sce_fast
