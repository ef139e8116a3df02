#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/ids.hpp"
#include "packing/layout.hpp"

namespace packing {

// These functions assign rows to the slots of a layout, given the lengths counted for it. The
// result does not depend on the number of threads. They throw std::invalid_argument if the lengths
// do not match the layout; nothing is written before that, unless the lengths change during the
// call.

enum class Place { batch, slot };

// Writes the batch number of each row, or its slot in the batch. The rows follow those counted in
// `before`; rows of equal size are assigned in row order.
template <class Length, class Number>
void assign(const Layout& layout, std::span<const Length> lengths, const TokenCounts& before,
            Place place, std::span<Number> out, Threads threads);

// Writes the rows in order of batches and slots, and the offset of each batch and of the end. Rows
// of equal size are in order of ID, or in row order without IDs. Without IDs, `scratch` must have
// the size of `out`.
template <class Length, class Row>
void list_rows(const Layout& layout, std::span<const Length> lengths, const Ids& ids,
               std::span<Row> scratch, std::span<Row> out, std::span<std::int64_t> offsets,
               Threads threads);

// Permutes the rows of each size at random, every permutation equally likely. `rows` is the result
// of list_rows; `scratch` and `out` must have its size. A seed gives the same result on any
// platform.
template <class Row>
void shuffle_rows(const Layout& layout, std::span<const Row> rows, std::uint64_t seed,
                  std::span<Row> scratch, std::span<Row> out, Threads threads);

}  // namespace packing
