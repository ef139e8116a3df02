#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

// Conversions between NumPy arrays and spans. Arrays must be one-dimensional, contiguous, aligned
// and in native byte order; others raise TypeError.

using Int64Array = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

inline void require_plain(const pybind11::array& array, const char* name) {
    const auto address = reinterpret_cast<std::uintptr_t>(array.data());
    const char order = array.dtype().byteorder();
    if (array.ndim() != 1 || (array.flags() & pybind11::array::c_style) == 0 ||
        address % static_cast<std::size_t>(array.dtype().alignment()) != 0 || order == '<' ||
        order == '>') {
        throw pybind11::type_error(
            std::string(name) +
            " must be a one-dimensional, contiguous and aligned array in native byte order");
    }
}

template <class Number>
std::span<const Number> view(const pybind11::array& array) {
    return {static_cast<const Number*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <class Number>
std::span<Number> mutable_view(pybind11::array& array) {
    return {static_cast<Number*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

// Calls use(span) with a span of lengths of the array's integer type.
template <class Use>
auto with_lengths(const pybind11::array& lengths, const Use& use) {
    require_plain(lengths, "lengths");
    const bool is_signed = lengths.dtype().kind() == 'i';
    if (is_signed || lengths.dtype().kind() == 'u') {
        switch (lengths.itemsize()) {
            case 1:
                return is_signed ? use(view<std::int8_t>(lengths))
                                 : use(view<std::uint8_t>(lengths));
            case 2:
                return is_signed ? use(view<std::int16_t>(lengths))
                                 : use(view<std::uint16_t>(lengths));
            case 4:
                return is_signed ? use(view<std::int32_t>(lengths))
                                 : use(view<std::uint32_t>(lengths));
            case 8:
                return is_signed ? use(view<std::int64_t>(lengths))
                                 : use(view<std::uint64_t>(lengths));
        }
    }
    throw pybind11::type_error("lengths must be integers");
}

// Calls use(number) with a zero of the array's integer type.
template <class Use>
auto with_number(const pybind11::array& array, const char* name, const Use& use) {
    require_plain(array, name);
    if (array.dtype().kind() == 'i' && array.itemsize() == 4) {
        return use(std::int32_t{});
    }
    if (array.dtype().kind() == 'i' && array.itemsize() == 8) {
        return use(std::int64_t{});
    }
    throw pybind11::type_error(std::string(name) + " must be int32 or int64");
}

inline pybind11::array_t<std::int64_t> to_array(std::span<const std::int64_t> values) {
    return pybind11::array_t<std::int64_t>(static_cast<pybind11::ssize_t>(values.size()),
                                           values.data());
}

inline std::vector<std::int64_t> to_vector(const Int64Array& array, const char* name) {
    require_plain(array, name);
    return {array.data(), array.data() + array.size()};
}
