#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace packing {

// Arithmetic on non-negative numbers that throws std::overflow_error; `what` names the result.

inline std::int64_t checked_add(std::int64_t a, std::int64_t b, const char* what) {
    if (a > std::numeric_limits<std::int64_t>::max() - b) {
        throw std::overflow_error(std::string(what) + " does not fit in 64 bits");
    }
    return a + b;
}

inline std::int64_t checked_multiply(std::int64_t a, std::int64_t b, const char* what) {
    // Dividing is slow, and most numbers have less than 32 bits.
    if ((a | b) >> 31 != 0 && b != 0 && a > std::numeric_limits<std::int64_t>::max() / b) {
        throw std::overflow_error(std::string(what) + " does not fit in 64 bits");
    }
    return a * b;
}

constexpr std::int64_t ceil_divide(std::int64_t a, std::int64_t b) {
    return a / b + (a % b == 0 ? 0 : 1);
}

}  // namespace packing
