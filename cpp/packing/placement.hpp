#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/limits.hpp"

namespace packing {

// The tokens and the sequences that a batch has.
struct Fill {
    std::int64_t tokens;
    std::int64_t sequences;
};

// Returns the batch of each of the sequences, of which `sizes` has the tokens: in this order, each
// goes to the first batch with room for it. Batches from 0 are those in `open`, and then new ones.
// Throws std::invalid_argument if a size or a batch in `open` exceeds a limit. O(n log n), for n
// sequences and open batches.
std::vector<std::int64_t> place(std::span<const Fill> open, std::span<const std::int64_t> sizes,
                                const Limits& limits);

}  // namespace packing
