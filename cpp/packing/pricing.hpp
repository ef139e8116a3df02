#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "packing/layout.hpp"

namespace packing {

// Returns the number of steps that `price_patterns` takes. Throws std::overflow_error if it does
// not fit in 64 bits.
std::int64_t pricing_steps(const TokenCounts& counts);

struct Pricing {
    std::int64_t best_value;  // the largest total dual value of a batch
    std::vector<Pattern> patterns;
};

// Solves the pricing problem of column generation: finds the batch of largest total dual value,
// where duals[i] is the dual value of a sequence of counts.tokens[i] tokens. Returns that value and
// at most `max_patterns` patterns of positive value, the best first. Each of the others is the best
// for a prefix of the sizes of which a batch can hold all sequences, in an order that starts with
// `first_size`, or the best, among the other sizes, with a size that those before do not have. A
// pattern has at most as many sequences of a size as there are. Throws
// std::overflow_error if a value is 2^53 or more.
//
// The bounded knapsack problem by dynamic programming over tokens and, if their number is limited,
// sequences: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 7.
Pricing price_patterns(const TokenCounts& counts, std::span<const std::int64_t> duals,
                       std::size_t first_size, std::size_t max_patterns);

}  // namespace packing
