// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

namespace koopfast::cuda {

// Why the kernels cannot run on the current device (no machine code for it, a driver older than the
// runtime); empty where they can. Launches nothing.
std::string failure();

}  // namespace koopfast::cuda
