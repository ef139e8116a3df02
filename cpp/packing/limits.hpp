#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <stdexcept>

namespace packing {

// The largest budget, and so the largest size of a sequence.
inline constexpr std::int64_t max_tokens = std::int64_t{1} << 62;

inline constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

// Limits on batches and sequences, which determine the tokens of each sequence.
struct Limits {
    std::int64_t max_tokens_per_batch = max_tokens;
    std::int64_t max_sequence_length = unlimited;  // in residues
    std::int64_t special_tokens = 0;               // per sequence
    std::int64_t max_sequences_per_batch = unlimited;
    std::int64_t multiple_of = 1;  // to which the tokens of a sequence are rounded up

    // Maximum residues kept per sequence: at most what fits in a batch with the special tokens, and
    // with padding.
    std::int64_t max_residues() const {
        const std::int64_t unusable = multiple_of == 1 ? 0 : max_tokens_per_batch % multiple_of;
        return std::min(max_sequence_length, max_tokens_per_batch - unusable - special_tokens);
    }

    // Tokens of a sequence of `length` residues, after truncation, without padding.
    std::int64_t real_tokens(std::int64_t length) const {
        return std::min(length, max_residues()) + special_tokens;
    }

    // The smallest multiple of `multiple_of` that is at least a number of tokens up to the budget.
    std::int64_t round_up(std::int64_t tokens) const {
        return multiple_of == 1 ? tokens : (tokens + (multiple_of - 1)) / multiple_of * multiple_of;
    }

    // Tokens that a sequence of `length` residues takes in a batch, after truncation.
    std::int64_t tokens(std::int64_t length) const { return round_up(real_tokens(length)); }

    // Whether every sequence has the same number of tokens under both limits.
    bool same_tokens(const Limits& other) const {
        return max_residues() == other.max_residues() && special_tokens == other.special_tokens &&
               multiple_of == other.multiple_of;
    }

    // Throws std::invalid_argument if a limit is out of range or a batch has no room for a residue.
    void validate() const {
        if (max_tokens_per_batch < 1 || max_tokens_per_batch > max_tokens || special_tokens < 0 ||
            max_sequence_length < 1 || max_sequences_per_batch < 1 || multiple_of < 1 ||
            special_tokens >= max_tokens_per_batch - max_tokens_per_batch % multiple_of) {
            throw std::invalid_argument("limits are out of range or have no room for one residue");
        }
    }

    // Whether the same batches are allowed and every sequence has the same number of tokens.
    bool operator==(const Limits& other) const;
};

// The members of Limits, by the names that are also used outside the kernel.
struct NamedLimit {
    const char* name;
    std::int64_t Limits::* member;
};
inline constexpr NamedLimit all_limits[] = {
    {"max_tokens_per_batch", &Limits::max_tokens_per_batch},
    {"max_sequence_length", &Limits::max_sequence_length},
    {"special_tokens", &Limits::special_tokens},
    {"max_sequences_per_batch", &Limits::max_sequences_per_batch},
    {"multiple_of", &Limits::multiple_of}};
static_assert(sizeof(Limits) == sizeof(std::int64_t) * std::size(all_limits));

inline bool Limits::operator==(const Limits& other) const {
    Limits mine = *this;
    Limits others = other;
    mine.max_sequence_length = max_residues();
    others.max_sequence_length = other.max_residues();
    return std::ranges::all_of(all_limits, [&](const NamedLimit& limit) {
        return mine.*limit.member == others.*limit.member;
    });
}

}  // namespace packing
