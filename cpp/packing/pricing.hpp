#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "packing/layout.hpp"

namespace packing {

// Returns the number of steps to find the best batch: states of the table times pieces. Finding all
// patterns takes up to four times as many. Throws std::overflow_error if it does not fit in 64
// bits.
std::int64_t pricing_steps(const TokenCounts& counts);

struct Pricing {
    std::int64_t best_value;  // the largest total dual value of a batch
    std::vector<Pattern> patterns;
};

// Solves the pricing problem of column generation: finds the batch of largest total dual value,
// where duals[i] is the dual value of a sequence of counts.tokens[i] tokens. Returns that value and
// at most `max_patterns` patterns of positive value, the best first. The others are the best for
// prefixes of the sizes of which a batch can hold all sequences, in an order that starts with
// `first_size`, together with all other sizes; then for every 4th, 16th and 64th of the other sizes
// alone. A pattern has at most as many sequences of a size as there are. Throws std::overflow_error
// if a value is 2^53 or more. Needs 8 to 24 bytes per state, and one per state and piece of the
// sizes of which a batch can hold all sequences.
//
// The bounded knapsack problem by dynamic programming over tokens and, if their number is limited,
// sequences: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 7.
Pricing price_patterns(const TokenCounts& counts, std::span<const std::int64_t> duals,
                       std::size_t first_size, std::size_t max_patterns);

}  // namespace packing
