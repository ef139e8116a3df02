#pragma once

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "packing/limits.hpp"
#include "packing/parallel.hpp"

namespace packing {

// The number of sequences of each size, in tokens.
struct TokenCounts {
    Limits limits;
    std::vector<std::int64_t> tokens;     // distinct sizes, largest first
    std::vector<std::int64_t> sequences;  // number of sequences of each size, at least 1
    std::int64_t num_truncated = 0;       // number of truncated sequences
    std::int64_t truncated_residues = 0;  // residues removed by truncation
    std::int64_t padding_tokens = 0;      // tokens added by rounding up

    std::int64_t num_sequences() const;
    // The tokens of all sequences without padding.
    std::int64_t total_tokens() const;

    // Throws std::invalid_argument if the members are inconsistent.
    void validate() const;

    auto fields() const {
        return std::tie(tokens, sequences, num_truncated, truncated_residues, padding_tokens);
    }

    // Limits that do not change the tokens of a sequence make no difference.
    bool operator==(const TokenCounts& other) const {
        return limits.same_tokens(other.limits) && fields() == other.fields();
    }
};

// Counts lengths (in residues). Throws std::invalid_argument, naming the first, if a length is
// negative, and std::overflow_error if the number of truncated residues or of padding tokens does
// not fit in 64 bits.
template <class Length>
TokenCounts count(std::span<const Length> lengths, const Limits& limits, Threads threads);

// Returns counts from sizes in any order, each with a number of sequences; those of equal sizes are
// added up. Throws std::invalid_argument, naming the first, if a size is not one that the limits
// allow or a number is not positive, or if other members do not fit the sizes; and
// std::overflow_error if a sum does not fit in 64 bits.
TokenCounts from_pairs(TokenCounts pairs);

// Adds the counts of disjoint sets of sequences. Throws std::invalid_argument unless sequences have
// the same tokens under the limits of both; the result has the limits of the first.
TokenCounts add(const TokenCounts& a, const TokenCounts& b);

// Replaces the limits of counts. Throws std::invalid_argument unless sequences have the same tokens
// under the new limits.
TokenCounts with_limits(TokenCounts counts, const Limits& limits);

// Returns the counts of a subset with the given number of sequences of each size. They count as not
// truncated, with as little padding as their sizes allow.
TokenCounts subset(const TokenCounts& counts, std::span<const std::int64_t> sequences);

}  // namespace packing
