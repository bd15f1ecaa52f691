// SPDX-License-Identifier: BSD-3-Clause
#include "hindcast.h"

#include <algorithm>
#include <limits>

#include "rank_hindcast.h"

namespace koopfast {

int64_t hindcast(const Matrix& h, const BlockShape& shape, const FitOptions& options, int64_t limit,
                 double& error, double& trusted) {
  const int64_t pairs = h.cols() - 1;
  error = trusted = std::numeric_limits<double>::quiet_NaN();
  if (pairs < 3) return limit;
  const int64_t tail = std::max<int64_t>(1, pairs / 3), split = pairs - tail;
  const Pairs head{h.leftCols(split), h.middleCols(1, split), h.col(split), split};
  return rank_by_hindcast(head, h.topRows(shape.rows).rightCols(tail), shape, options, limit, error,
                          trusted);
}

}  // namespace koopfast
