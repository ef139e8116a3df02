#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "packing/parallel.hpp"

namespace packing {

// A string of code points, each of `width` bytes (1, 2 or 4).
class Text {
  public:
    Text() = default;
    Text(const void* data, std::uint64_t length, unsigned width)
        : data_(data), length_and_width_(length << 3 | width) {}

    const void* data() const { return data_; }
    std::size_t length() const { return static_cast<std::size_t>(length_and_width_ >> 3); }
    unsigned width() const { return static_cast<unsigned>(length_and_width_ & 7); }

  private:
    const void* data_ = nullptr;
    std::uint64_t length_and_width_ = 1;
};

// The ID of each row, which breaks ties between equal sizes; std::monostate to break ties by row.
using Ids = std::variant<std::monostate, std::span<const std::int64_t>, std::span<const Text>>;

// A row with its sort key among rows of equal size.
struct KeyedRow {
    std::uint64_t key;
    std::int64_t row;

    auto operator<=>(const KeyedRow&) const = default;
};

// Orders rows by ID as Python compares int and str, and rows of equal ID by number.
class IdOrder {
  public:
    IdOrder(const Ids& ids, std::size_t num_rows, Threads threads);

    // Rows with different keys are in the order of their keys.
    KeyedRow keyed(std::size_t row) const;

    // Sorts keyed rows.
    void sort(std::span<KeyedRow> rows) const;

  private:
    // The key of an ID whose code points from `from` on are to be compared.
    KeyedRow keyed(std::size_t row, std::size_t from) const;
    bool less(const KeyedRow& a, const KeyedRow& b, std::size_t from) const;
    void sort(std::span<KeyedRow> rows, std::size_t from, int keys_left) const;

    std::span<const std::int64_t> numbers_;
    std::span<const Text> texts_;
    // The key of a text has `points_` code points of `bits_` bits each, from the end of the prefix
    // that all texts share, and how many of them there are, or one more if others follow.
    static constexpr unsigned count_bits = 4;
    std::size_t prefix_ = 0;
    unsigned bits_ = 8;
    unsigned points_ = 7;
};

}  // namespace packing
