// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string>

namespace koopfast::cuda {

// Why the kernels cannot run on this device (no machine code for it, a driver older than the
// runtime); empty where they can. Launches nothing.
std::string failure(int device);

// Makes a device the current one of the runtime that is linked in: torch has a runtime of its own,
// and each remembers its own device.
void use(int device);

}  // namespace koopfast::cuda
