#pragma once

#include <pybind11/pybind11.h>

#include "packing/limits.hpp"

// Converts an object with attributes named like the members of `packing::Limits`; None means
// unlimited.
packing::Limits to_limits(pybind11::handle object);

namespace pybind11::detail {

template <>
struct type_caster<packing::Limits> {
    PYBIND11_TYPE_CASTER(packing::Limits, const_name("Limits"));

    bool load(handle object, bool) {
        value = to_limits(object);
        return true;
    }
};

}  // namespace pybind11::detail
