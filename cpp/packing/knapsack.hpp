#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "packing/layout.hpp"

namespace packing {

// The steps that `most_valuable` takes.
std::int64_t knapsack_steps(const TokenCounts& counts);

struct Priced {
    std::int64_t best;  // what the most valuable batch is worth
    std::vector<Pattern> patterns;
};

// Returns what the most valuable batch is worth if each sequence of counts.tokens[i] is worth
// values[i], and at most `most` batches that are worth more than nothing, that one first and each
// worth less than the one before; the others are the best ones of sizes in an order that begins
// with `first_size` and ends early. No batch has more sequences of a size than there are; sizes
// without tokens are left out. Throws std::overflow_error if a batch is worth 2**53 or more.
//
// The bounded knapsack problem by dynamic programming over tokens (and sequences, where their
// number is limited): Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 7.
Priced most_valuable(const TokenCounts& counts, std::span<const std::int64_t> values,
                     std::size_t first_size, std::size_t most);

}  // namespace packing
