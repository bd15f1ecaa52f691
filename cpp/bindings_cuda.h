// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <pybind11/pybind11.h>

namespace koopfast {

void bind_cuda(pybind11::module_& m);

}  // namespace koopfast
