// Loss and gradient in one pass over the candidates, on a CPU.
#pragma once

#include "../problem.h"
#include "tile.h"

namespace sce_fast {

// Solves a problem with the same bits for any number of threads. Throws std::invalid_argument if the gradient is not
// float32 or `scalars` is set.
void solve(const Problem& problem, const Solution& solution, Products products, int threads);

}  // namespace sce_fast
