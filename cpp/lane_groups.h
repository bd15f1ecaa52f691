// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace koopfast {

// Groups of up to `most` blocks of one kind, each in the order of the blocks.
struct Groups {
  std::vector<int64_t> order;  // positions, equal kinds together
  std::vector<int64_t> first;  // (groups + 1,) into order

  int64_t count() const { return static_cast<int64_t>(first.size()) - 1; }
};

template <typename Kind>
Groups group_by(int64_t count, int64_t most, const Kind& kind) {
  Groups groups;
  groups.order.resize(count);
  std::iota(groups.order.begin(), groups.order.end(), 0);
  std::stable_sort(groups.order.begin(), groups.order.end(),
                   [&](int64_t a, int64_t b) { return kind(a) < kind(b); });
  for (int64_t i = 0; i < count; ++i)
    if (groups.first.empty() || i - groups.first.back() == most ||
        kind(groups.order[i]) != kind(groups.order[i - 1]))
      groups.first.push_back(i);
  groups.first.push_back(count);
  return groups;
}

}  // namespace koopfast
