// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <vector>

#include "reduced_operator.h"

// The fits of reduced_operator.h to several blocks, small ones eight at a time: many candidates are
// fitted to every block where an operator is to be chosen. What a block yields depends on no other.
namespace koopfast {

// What is observed of a block, (s, P), and o^T o where it is known already.
struct Observed {
  Matrix o;
  Matrix gram;
};

// Fits the same to each: as reduce(embed(o, options.delays), ...), but `basis` is left empty, and
// so is `combining` where there are as many pairs as stacked observables. No operator (rank 0)
// where there is no pair.
std::vector<Reduced> reduce_together(const std::vector<Observed>& blocks,
                                     const std::vector<BlockShape>& shapes,
                                     const FitOptions& options, const std::vector<int64_t>& limits);

}  // namespace koopfast
