// SPDX-License-Identifier: BSD-3-Clause
#include "motion.h"

#include <algorithm>

namespace koopfast {

int64_t snapshots(const Motion& motion) {
  return motion.states.size() > 0 ? motion.states.cols() : motion.steps.cols() + 1;
}

Matrix observe(const Motion& motion, int64_t end, int64_t count, const FitOptions& options) {
  const int64_t a = options.block_average, groups = count / a, first = end - groups * a;
  if (!options.increments) {
    if (a == 1) return motion.states.middleCols(first, count);
    Matrix means(motion.states.rows(), groups);
    for (int64_t g = 0; g < groups; ++g)
      means.col(g) = motion.states.middleCols(first + g * a, a).rowwise().mean();
    return means;
  }
  if (a == 1) return motion.steps.middleCols(first, count - 1);
  // The difference of the means of two groups: the steps between them under a triangle.
  Vector triangle(2 * a - 1);
  for (int64_t l = 0; l < 2 * a - 1; ++l)
    triangle(l) = static_cast<double>(std::min(l + 1, 2 * a - 1 - l)) / static_cast<double>(a);
  Matrix means(motion.steps.rows(), std::max<int64_t>(0, groups - 1));
  for (int64_t g = 0; g + 1 < groups; ++g)
    means.col(g).noalias() = motion.steps.middleCols(first + g * a, 2 * a - 1) * triangle;
  return means;
}

Matrix embed(const Matrix& o, int64_t delays) {
  if (delays == 1) return o;
  const int64_t s = o.rows(), count = o.cols() - delays + 1;
  Matrix h(s * delays, count);
  for (int64_t j = 0; j < delays; ++j) h.middleRows(j * s, s) = o.middleCols(delays - 1 - j, count);
  return h;
}

Matrix displacements(const Motion& motion, int64_t end) {
  const int64_t tail = snapshots(motion) - end;
  if (motion.steps.size() == 0)
    return motion.states.rightCols(tail).colwise() - motion.states.col(end - 1);
  Matrix moved = motion.steps.rightCols(tail);
  for (int64_t t = 1; t < tail; ++t) moved.col(t) += moved.col(t - 1);
  return moved;
}

Vector origin(const Motion& motion, int64_t end, int64_t average) {
  const auto a = static_cast<double>(average);
  if (motion.steps.size() == 0)
    return motion.states.middleCols(end - average, average).rowwise().mean() -
           motion.states.col(end - 1);
  Vector mean = Vector::Zero(motion.steps.rows());
  for (int64_t l = 1; l < average; ++l)
    mean -= (a - static_cast<double>(l)) / a * motion.steps.col(end - 1 - l);
  return mean;
}

}  // namespace koopfast
