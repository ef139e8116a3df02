#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "packing/layout.hpp"

namespace packing {

// Limit on the sizes in all patterns, which corresponds to about two seconds.
inline constexpr std::int64_t max_parts_of_patterns = std::int64_t{1} << 24;

// Returns a layout for a limit on sequences, in which batches have similar numbers of them.
//
// A batch has as many slots as the remaining sequences need on average, at most the limit. Each
// slot, in turn, takes the largest size that leaves room for the smallest sequences in the slots
// after it; tokens that are then free take more sequences, up to the limit. This pattern is used as
// often as the counts allow, and the next one is made from the sequences that remain. After
// `max_parts` sizes in all patterns, the remaining sequences are packed by first fit. Throws
// std::invalid_argument if the counts are inconsistent, std::overflow_error if the number of tokens
// does not fit in 64 bits.
//
// Cost: O(sizes * log(sequences)) patterns, and for each the sizes that fill its slots, times
// log(sizes) and log(sequences).
Layout patterns_with_reservation(TokenCounts counts,
                                 std::int64_t max_parts = max_parts_of_patterns);

// Counts with fewer sizes: coarse size i stands for the original sizes [first_size[i],
// first_size[i + 1]).
struct CoarseCounts {
    TokenCounts counts;
    std::vector<std::size_t> first_size;
};

// How joint sizes are rounded.
enum class Rounding {
    down,     // the smallest of the sizes, so that batches that are possible remain possible
    nearest,  // their mean, to the nearest multiple
};

// Joins neighboring sizes to about `max_sizes`, narrower where there are more sequences. Joint
// sizes, and the budget, are divided by `unit`. If they are rounded down, a bound for the coarse
// counts holds for the original ones, too. Throws std::invalid_argument if the unit is not positive
// or exceeds the budget, or max_sizes is 0.
CoarseCounts coarsen(const TokenCounts& counts, std::int64_t unit, std::size_t max_sizes,
                     Rounding rounding);

// Patterns, the number of batches of each, and the sequences of each size that are in none.
struct Refined {
    std::vector<Pattern> patterns;
    std::vector<std::int64_t> num_batches;
    std::vector<std::int64_t> remaining;
};

// Returns at most num_batches[i] batches like patterns[i], whose sizes are coarse: each slot, in
// turn, takes the largest of the sizes that were joined to its size that leaves room for the
// smallest such sizes in the slots after it. Slots without a sequence stay empty, and batches that
// do not fit are left out. Throws std::invalid_argument if the patterns are invalid, or those of
// other counts, and std::overflow_error if the number of tokens does not fit in 64 bits.
Refined refine(const TokenCounts& counts, std::span<const std::size_t> first_size,
               std::span<const Pattern> patterns, std::span<const std::int64_t> num_batches);

}  // namespace packing
