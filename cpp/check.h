// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <stdexcept>
#include <string>

// The last line of defence behind the checks of the Python layer: a failed one is a bug there.
#define KF_CHECK(condition, message)                                                              \
  do {                                                                                            \
    if (!(condition))                                                                             \
      throw std::invalid_argument(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + \
                                  (message));                                                     \
  } while (false)
