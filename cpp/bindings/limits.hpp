#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "packing/limits.hpp"

namespace pybind11::detail {

// Accepts any object with the attributes named in `all_limits`; None means unlimited.
template <>
struct type_caster<packing::Limits> {
    PYBIND11_TYPE_CASTER(packing::Limits, const_name("Limits"));

    bool load(handle object, bool) {
        for (const auto& [name, member] : packing::all_limits) {
            value.*member = to_limit(object.attr(name));
        }
        return true;
    }

  private:
    static std::int64_t to_limit(handle limit) {
        if (limit.is_none()) {
            return packing::unlimited;
        }
        int overflow = 0;
        const std::int64_t number = PyLong_AsLongLongAndOverflow(limit.ptr(), &overflow);
        if (number == -1 && PyErr_Occurred() != nullptr) {
            throw error_already_set();
        }
        // Larger values never limit anything.
        return overflow > 0 ? packing::unlimited : number;
    }
};

}  // namespace pybind11::detail
