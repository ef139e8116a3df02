#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/limits.hpp"
#include "packing/parallel.hpp"

namespace packing {

// How many sequences have each number of tokens.
struct TokenCounts {
    Limits limits;
    std::vector<std::int64_t> tokens;     // the distinct numbers of tokens, largest first
    std::vector<std::int64_t> sequences;  // how many sequences have each, at least one
    std::int64_t num_truncated = 0;       // sequences with more residues than are kept
    std::int64_t truncated_residues = 0;  // residues that are not kept

    std::int64_t num_sequences() const;
    std::int64_t total_tokens() const;

    // Throws std::invalid_argument unless every statement above holds.
    void validate() const;

    bool operator==(const TokenCounts&) const = default;
};

// Counts lengths (residues). Throws std::invalid_argument that names the first negative length,
// std::overflow_error if a sum needs more than 64 bits.
template <class Length>
TokenCounts count(std::span<const Length> lengths, const Limits& limits, Threads threads);

// Counts of two disjoint sets of sequences together. Throws std::invalid_argument unless sequences
// have the same tokens under the limits of both; the result has those of the first.
TokenCounts add(const TokenCounts& a, const TokenCounts& b);

// The same counts under other limits, under which sequences have the same tokens.
TokenCounts with_limits(TokenCounts counts, const Limits& limits);

// Counts of so many of the sequences of each size, none of which is truncated.
TokenCounts subset(const TokenCounts& counts, std::span<const std::int64_t> sequences);

}  // namespace packing
