// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <vector>

#include "operator_fit.h"
#include "reduced_operator.h"
#include "solvers/solvers.h"

// Eigenbases of several small operators, eight at a time (math/general_eigen.h). What comes of one
// depends on no other.
namespace koopfast {

// As eigenbasis() of each, of one direction or more.
std::vector<Eigenbasis> eigenbases(const std::vector<const Matrix*>& operators);

// As move_to_unit_disc() of each that is not certainly stable, without the eigenbasis.
struct Bounded {
  Matrix* op;
  Matrix* lift;
};
void move_all_to_unit_disc(const std::vector<Bounded>& operators, Unstable unstable,
                           double radius = 1);

}  // namespace koopfast
