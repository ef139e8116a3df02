#pragma once

#include <span>

#include "packing/layout.hpp"
#include "packing/parallel.hpp"

namespace packing {

// Writes the batch and the slot of sequence number ranks[i], in the order of ties, of those of
// tokens[i]. The result does not depend on the number of threads. Throws std::invalid_argument,
// naming the first, if the layout does not have such a sequence; other rows may have been written.
// O(1) for the next sequence of a size, O(log(runs of the size)) for another, or if there are fewer
// rows than sizes; and O(log(sizes)) if the largest size exceeds 4,095 and the number of rows.
template <class Tokens, class Rank, class Number>
void place_ranks(const Layout& layout, std::span<const Tokens> tokens, std::span<const Rank> ranks,
                 std::span<Number> batches, std::span<Number> slots, Threads threads);

}  // namespace packing
