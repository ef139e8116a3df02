#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace packing {

// No budget, and so no sequence, may have more tokens.
inline constexpr std::int64_t most_tokens = std::int64_t{1} << 62;

// How many sequences have each number of tokens. A sequence of n residues has
// min(n, max_length) + special_tokens tokens.
struct TokenCounts {
    std::int64_t max_length = 1;
    std::int64_t special_tokens = 0;
    std::vector<std::int64_t> tokens;     // the distinct numbers of tokens, largest first
    std::vector<std::int64_t> sequences;  // how many sequences have each, at least one
    std::int64_t num_truncated = 0;       // sequences longer than max_length
    std::int64_t truncated_tokens = 0;    // residues cut off

    std::int64_t num_sequences() const;
    std::int64_t total_tokens() const;

    // Throws std::invalid_argument unless every statement above holds.
    void validate() const;

    bool operator==(const TokenCounts&) const = default;
};

// Counts lengths (residues) on at most num_threads threads. Throws std::invalid_argument that
// names the first negative length, std::overflow_error where a sum needs more than 64 bits.
template <class Length>
TokenCounts count(std::span<const Length> lengths, std::int64_t max_length,
                  std::int64_t special_tokens, int num_threads);

// Counts of two disjoint sets of sequences together.
TokenCounts add(const TokenCounts& a, const TokenCounts& b);

}  // namespace packing
