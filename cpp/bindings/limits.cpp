#include "bindings/limits.hpp"

#include <cstdint>

namespace py = pybind11;
using packing::Limits;

namespace {

struct Name {
    const char* name;
    std::int64_t Limits::* member;
};

constexpr Name limit_names[] = {{"max_tokens_per_batch", &Limits::max_tokens_per_batch},
                                {"max_sequence_length", &Limits::max_sequence_length},
                                {"special_tokens", &Limits::special_tokens},
                                {"max_sequences_per_batch", &Limits::max_sequences_per_batch}};

std::int64_t to_limit(py::handle value) {
    if (value.is_none()) {
        return packing::unlimited;
    }
    int overflow = 0;
    const std::int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (number == -1 && PyErr_Occurred() != nullptr) {
        throw py::error_already_set();
    }
    // Larger values never limit anything.
    return overflow > 0 ? packing::unlimited : number;
}

}  // namespace

Limits to_limits(py::handle object) {
    Limits limits;
    for (const auto& [name, member] : limit_names) {
        limits.*member = to_limit(object.attr(name));
    }
    return limits;
}
