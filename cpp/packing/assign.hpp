#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/ids.hpp"
#include "packing/layout.hpp"

namespace packing {

// The functions below hand out the slots of a layout to rows, given the lengths that were counted
// for it. The result is the same for any number of threads. All throw std::invalid_argument if the
// lengths do not match the layout, before anything is written unless the lengths are changed
// meanwhile.

enum class Place { batch, slot };

// Writes the number of each row's batch, or its slot within the batch. The rows are those that
// come after the rows counted in `before`; rows of equal size are in row order.
template <class Length, class Number>
void assign(const Layout& layout, std::span<const Length> lengths, const TokenCounts& before,
            Place place, std::span<Number> out, Threads threads);

// Writes the rows in order of batches and slots, and where each batch begins (one offset more than
// batches). Rows of equal size are in order of their IDs, or in row order without IDs; there
// `scratch` has room for a number per row.
template <class Length, class Row>
void list_rows(const Layout& layout, std::span<const Length> lengths, const Ids& ids,
               std::span<Row> scratch, std::span<Row> out, std::span<std::int64_t> offsets,
               Threads threads);

// Draws anew which of the rows of equal size stands in which of their slots, every way equally
// likely; `rows` are those of list_rows, `scratch` has room for as many. The same seed draws the
// same on any platform.
template <class Row>
void shuffle_rows(const Layout& layout, std::span<const Row> rows, std::uint64_t seed,
                  std::span<Row> scratch, std::span<Row> out, Threads threads);

}  // namespace packing
