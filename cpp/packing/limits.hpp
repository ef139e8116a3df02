#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace packing {

// No budget, and so no sequence, may have more tokens.
inline constexpr std::int64_t most_tokens = std::int64_t{1} << 62;

inline constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

// What a batch may hold, and the tokens of a sequence.
struct Limits {
    std::int64_t max_tokens_per_batch = most_tokens;
    std::int64_t max_sequence_length = unlimited;  // residues
    std::int64_t special_tokens = 0;               // of each sequence
    std::int64_t max_sequences_per_batch = unlimited;

    // The most residues kept of a sequence: never more than fit in a batch with the special tokens.
    std::int64_t max_residues() const {
        return std::min(max_sequence_length, max_tokens_per_batch - special_tokens);
    }

    // Tokens of a sequence of `length` residues.
    std::int64_t tokens(std::int64_t length) const {
        return std::min(length, max_residues()) + special_tokens;
    }

    // Whether every sequence has the same tokens under both.
    bool same_tokens(const Limits& other) const {
        return max_residues() == other.max_residues() && special_tokens == other.special_tokens;
    }

    // Throws std::invalid_argument unless a batch has room for a sequence of one residue.
    void validate() const;

    bool operator==(const Limits&) const = default;
};

}  // namespace packing
