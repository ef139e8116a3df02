#include "packing/counts.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "packing/checked.hpp"
#include "packing/histogram.hpp"
#include "packing/parallel.hpp"

namespace packing {

namespace {

// Statistics of lengths from one pass, other than their counts.
struct LengthStatistics {
    bool has_negative = false;
    std::uint64_t truncated = 0;  // residues removed, modulo 2^64
    std::uint64_t carries = 0;    // multiples of 2^64

    // Adds a block that is small enough for the sum of its 32-bit lengths to fit in 64 bits.
    template <class Length>
    void add(std::span<const Length> block, std::uint64_t max_residues) {
        using Unsigned = std::make_unsigned_t<Length>;
        const auto limit = static_cast<Unsigned>(
            std::min<std::uint64_t>(max_residues, std::numeric_limits<Unsigned>::max()));
        Length bits = 0;
        std::uint64_t excess = 0;
        for (const Length length : block) {
            const auto removed =
                static_cast<Unsigned>(std::max(static_cast<Unsigned>(length), limit) - limit);
            bits = static_cast<Length>(bits | length);
            excess += removed;
            if constexpr (sizeof(Length) == 8) {
                carries += excess < removed ? 1 : 0;
            }
        }
        has_negative = has_negative || bits < 0;
        add_truncated(excess);
    }

    void add(const LengthStatistics& other) {
        has_negative = has_negative || other.has_negative;
        add_truncated(other.truncated);
        carries += other.carries;
    }

  private:
    void add_truncated(std::uint64_t residues) {
        truncated += residues;
        carries += truncated < residues ? 1 : 0;
    }
};

// Computes statistics of lengths in one pass, which also calls use(part, block) for each block.
template <class Length, class Use>
LengthStatistics scan(std::span<const Length> lengths, std::uint64_t max_residues, int num_parts,
                      const Use& use) {
    constexpr std::size_t block_size = 4096;
    std::vector<LengthStatistics> statistics(static_cast<std::size_t>(num_parts));
    parallel_for(num_parts, [&](int part) noexcept {
        const auto [begin, end] = part_of(lengths.size(), num_parts, part);
        LengthStatistics mine;
        for (std::size_t row = begin; row < end; row += block_size) {
            const auto block = lengths.subspan(row, std::min(block_size, end - row));
            mine.add(block, max_residues);
            use(part, block);
        }
        statistics[static_cast<std::size_t>(part)] = mine;
    });
    LengthStatistics all;
    for (const LengthStatistics& mine : statistics) {
        all.add(mine);
    }
    return all;
}

template <class Length>
[[noreturn]] void throw_negative(std::span<const Length> lengths) {
    const auto found = std::ranges::find_if(lengths, [](Length length) { return length < 0; });
    if (found == lengths.end()) {
        throw std::invalid_argument("lengths changed while they were being counted");
    }
    throw std::invalid_argument("lengths[" + std::to_string(found - lengths.begin()) +
                                "] is negative (got " + std::to_string(*found) + ")");
}

// Adds the padding of sequences with equally many tokens of it.
void add_padding(TokenCounts& counts, std::int64_t padding, std::int64_t num_sequences) {
    constexpr const char* what = "the number of padding tokens";
    counts.padding_tokens =
        checked_add(counts.padding_tokens, checked_multiply(padding, num_sequences, what), what);
}

// Adds sequences of one length. Lengths must be added in decreasing order, with all lengths above
// the limit represented by limit + 1.
void add_length(TokenCounts& counts, std::uint64_t length, std::int64_t num_sequences) {
    const auto limit = static_cast<std::uint64_t>(counts.limits.max_residues());
    const std::int64_t real =
        static_cast<std::int64_t>(std::min(length, limit)) + counts.limits.special_tokens;
    const std::int64_t tokens = counts.limits.round_up(real);
    if (length > limit) {
        counts.num_truncated = num_sequences;
    }
    if (tokens > real) {
        add_padding(counts, tokens - real, num_sequences);
    }
    if (!counts.tokens.empty() && counts.tokens.back() == tokens) {
        counts.sequences.back() += num_sequences;
    } else {
        counts.tokens.push_back(tokens);
        counts.sequences.push_back(num_sequences);
    }
}

void add_table(TokenCounts& counts, Histogram& histogram) {
    const std::span<std::int64_t> total = histogram.counts(0);
    for (int part = 1; part < histogram.num_parts(); ++part) {
        std::ranges::transform(total, histogram.counts(part), total.begin(), std::plus{});
    }
    const auto num_sizes = total.size() - static_cast<std::size_t>(std::ranges::count(total, 0));
    counts.tokens.reserve(num_sizes);
    counts.sequences.reserve(num_sizes);
    for (std::size_t length = total.size(); length-- > 0;) {
        if (total[length] > 0) {
            add_length(counts, length, total[length]);
        }
    }
}

template <class Length>
void add_by_sorting(TokenCounts& counts, std::span<const Length> lengths, std::uint64_t longest) {
    std::vector<std::uint64_t> sorted(lengths.size());
    std::ranges::transform(lengths, sorted.begin(),
                           [&](Length length) { return std::min(as_unsigned(length), longest); });
    std::ranges::sort(sorted, std::greater{});
    for (auto first = sorted.begin(); first != sorted.end();) {
        const auto last = std::find_if(first, sorted.end(),
                                       [&](std::uint64_t length) { return length != *first; });
        add_length(counts, *first, last - first);
        first = last;
    }
}

void require_same_tokens(const Limits& a, const Limits& b) {
    if (!a.same_tokens(b)) {
        const auto describe = [](const Limits& limits) {
            return "at most " + std::to_string(limits.max_residues()) + " residues and " +
                   std::to_string(limits.special_tokens) + " special tokens per sequence" +
                   (limits.multiple_of == 1
                        ? ""
                        : ", rounded up to a multiple of " + std::to_string(limits.multiple_of));
        };
        throw std::invalid_argument("counts were made with different limits: " + describe(a) +
                                    ", and " + describe(b));
    }
}

// Returns the padding of the longest, and of the shortest, sequences of a size.
std::int64_t least_padding(const Limits& limits, std::int64_t tokens) {
    return tokens - std::min(tokens, limits.real_tokens(unlimited));
}
std::int64_t most_padding(const Limits& limits, std::int64_t tokens) {
    return std::min(limits.multiple_of - 1, tokens - limits.special_tokens);
}

std::int64_t sum(std::span<const std::int64_t> values, const char* what) {
    std::int64_t total = 0;
    for (const std::int64_t value : values) {
        total = checked_add(total, value, what);
    }
    return total;
}

}  // namespace

template <class Length>
TokenCounts count(std::span<const Length> lengths, const Limits& limits, Threads threads) {
    limits.validate();
    const auto limit = static_cast<std::uint64_t>(limits.max_residues());
    // A small table of all lengths is filled in the same pass.
    const bool is_small = limit < 4096;
    Histogram small(lengths.size(), is_small ? static_cast<std::size_t>(limit + 2) : 0, threads);
    const LengthStatistics found =
        scan(lengths, limit, small.num_parts(), [&](int part, auto block) {
            if (is_small) {
                small.add(part, block, DenseBins{limit + 1});
            }
        });
    if (found.has_negative) {
        throw_negative(lengths);
    }
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (found.carries > 0 || found.truncated > largest) {
        throw std::overflow_error("the number of truncated residues does not fit in 64 bits");
    }
    TokenCounts counts;
    counts.limits = limits;
    counts.truncated_residues = static_cast<std::int64_t>(found.truncated);
    if (is_small) {
        small.finish();
        add_table(counts, small);
        return counts;
    }
    const std::uint64_t longest =
        lengths.empty() ? 0 : std::min(as_unsigned(std::ranges::max(lengths)), limit + 1);
    if (use_dense_table(longest + 1, lengths.size())) {
        Histogram histogram(lengths.size(), static_cast<std::size_t>(longest + 1), threads);
        histogram.add_all(lengths, DenseBins{longest});
        add_table(counts, histogram);
    } else {
        add_by_sorting(counts, lengths, longest);
    }
    return counts;
}

template TokenCounts count(std::span<const std::int8_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::int16_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::int32_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::int64_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::uint8_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::uint16_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::uint32_t>, const Limits&, Threads);
template TokenCounts count(std::span<const std::uint64_t>, const Limits&, Threads);

std::int64_t TokenCounts::num_sequences() const {
    return sum(sequences, "the number of sequences");
}

std::int64_t TokenCounts::total_tokens() const {
    constexpr const char* what = "the number of tokens";
    std::int64_t total = 0;
    for (std::size_t size = 0; size < tokens.size(); ++size) {
        total = checked_add(total, checked_multiply(tokens[size], sequences[size], what), what);
    }
    return total - padding_tokens;
}

void TokenCounts::validate() const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) {
            throw std::invalid_argument(std::string("inconsistent token counts: ") + what);
        }
    };
    limits.validate();
    const std::int64_t longest = limits.tokens(unlimited);
    require(tokens.size() == sequences.size(), "`tokens` and `sequences` differ in length");
    require(std::ranges::adjacent_find(tokens, std::less_equal{}) == tokens.end(),
            "sizes are not in decreasing order");
    require(tokens.empty() || (tokens.front() <= longest && tokens.back() >= limits.special_tokens),
            "a size is out of range");
    require(std::ranges::all_of(sequences, [](std::int64_t n) { return n >= 1; }),
            "a count is not positive");
    require(num_truncated >= 0 && truncated_residues >= num_truncated &&
                (truncated_residues == 0 || num_truncated > 0),
            "the numbers of truncated sequences and residues are inconsistent");
    const bool has_longest = !tokens.empty() && tokens.front() == longest;
    require(num_truncated <= (has_longest ? sequences.front() : 0),
            "more sequences are truncated than have the largest size");
    require(std::ranges::all_of(tokens,
                                [&](std::int64_t size) { return size == limits.round_up(size); }),
            "a size is not a multiple of `multiple_of`");
    require(padding_tokens >= 0, "the number of padding tokens is negative");
    num_sequences();
    total_tokens();
    // Neither sum exceeds that of all tokens.
    std::int64_t least = 0;
    std::int64_t most = 0;
    for (std::size_t size = 0; size < tokens.size(); ++size) {
        const std::int64_t num_free = sequences[size] - (size == 0 ? num_truncated : 0);
        least += least_padding(limits, tokens[size]) * sequences[size];
        most += least_padding(limits, tokens[size]) * (sequences[size] - num_free) +
                most_padding(limits, tokens[size]) * num_free;
    }
    require(least <= padding_tokens && padding_tokens <= most,
            "the number of padding tokens is out of range");
}

TokenCounts from_pairs(TokenCounts counts) {
    const Limits& limits = counts.limits;
    limits.validate();
    if (counts.tokens.size() != counts.sequences.size()) {
        throw std::invalid_argument("there must be one number of sequences per size");
    }
    const auto refuse = [](const char* name, std::size_t pair, const std::string& wanted,
                           std::int64_t got) {
        throw std::invalid_argument(std::string(name) + "[" + std::to_string(pair) + "] must be " +
                                    wanted + " (got " + std::to_string(got) + ")");
    };
    const std::int64_t longest = limits.tokens(unlimited);
    std::vector<std::pair<std::int64_t, std::int64_t>> sorted;
    sorted.reserve(counts.tokens.size());
    for (std::size_t pair = 0; pair < counts.tokens.size(); ++pair) {
        const std::int64_t tokens = counts.tokens[pair];
        const std::int64_t sequences = counts.sequences[pair];
        if (tokens < limits.special_tokens || tokens > longest) {
            refuse(
                "tokens", pair,
                "from " + std::to_string(limits.special_tokens) + " to " + std::to_string(longest),
                tokens);
        }
        if (tokens != limits.round_up(tokens)) {
            refuse("tokens", pair, "a multiple of " + std::to_string(limits.multiple_of), tokens);
        }
        if (sequences < 1) {
            refuse("sequences", pair, "at least 1", sequences);
        }
        sorted.emplace_back(tokens, sequences);
    }
    std::ranges::sort(sorted, std::greater{});
    counts.tokens.clear();
    counts.sequences.clear();
    for (const auto& [tokens, sequences] : sorted) {
        if (counts.tokens.empty() || counts.tokens.back() != tokens) {
            counts.tokens.push_back(tokens);
            counts.sequences.push_back(0);
        }
        counts.sequences.back() =
            checked_add(counts.sequences.back(), sequences, "the number of sequences");
    }
    counts.validate();
    return counts;
}

TokenCounts add(const TokenCounts& a, const TokenCounts& b) {
    require_same_tokens(a.limits, b.limits);
    TokenCounts sum;
    sum.limits = a.limits;
    sum.num_truncated = checked_add(a.num_truncated, b.num_truncated, "the number of sequences");
    sum.truncated_residues =
        checked_add(a.truncated_residues, b.truncated_residues, "the number of truncated residues");
    sum.padding_tokens =
        checked_add(a.padding_tokens, b.padding_tokens, "the number of padding tokens");
    std::size_t i = 0;
    std::size_t j = 0;
    while (i < a.tokens.size() || j < b.tokens.size()) {
        const bool from_a =
            j == b.tokens.size() || (i < a.tokens.size() && a.tokens[i] >= b.tokens[j]);
        const bool from_b =
            i == a.tokens.size() || (j < b.tokens.size() && b.tokens[j] >= a.tokens[i]);
        sum.tokens.push_back(from_a ? a.tokens[i] : b.tokens[j]);
        sum.sequences.push_back(checked_add(
            from_a ? a.sequences[i] : 0, from_b ? b.sequences[j] : 0, "the number of sequences"));
        i += from_a ? 1 : 0;
        j += from_b ? 1 : 0;
    }
    sum.num_sequences();
    return sum;
}

TokenCounts with_limits(TokenCounts counts, const Limits& limits) {
    limits.validate();
    require_same_tokens(counts.limits, limits);
    counts.limits = limits;
    return counts;
}

TokenCounts subset(const TokenCounts& counts, std::span<const std::int64_t> sequences) {
    if (sequences.size() != counts.tokens.size()) {
        throw std::invalid_argument("there must be one number of sequences per size");
    }
    TokenCounts result;
    result.limits = counts.limits;
    for (std::size_t size = 0; size < sequences.size(); ++size) {
        if (sequences[size] < 0 || sequences[size] > counts.sequences[size]) {
            throw std::invalid_argument("there are fewer sequences of a size than requested");
        }
        if (sequences[size] > 0) {
            result.tokens.push_back(counts.tokens[size]);
            result.sequences.push_back(sequences[size]);
            add_padding(result, least_padding(counts.limits, counts.tokens[size]), sequences[size]);
        }
    }
    return result;
}

}  // namespace packing
