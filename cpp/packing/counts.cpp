#include "packing/counts.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "packing/checked.hpp"
#include "packing/histogram.hpp"
#include "packing/parallel.hpp"

namespace packing {

namespace {

// What one look at the lengths tells.
struct Survey {
    bool has_negative = false;
    std::uint64_t longest = 0;
    std::uint64_t num_truncated = 0;
    std::uint64_t truncated = 0;  // residues, modulo 2^64
    std::uint64_t carries = 0;    // multiples of 2^64

    template <class Length>
    void add(std::span<const Length> lengths, std::uint64_t max_length) {
        // Sums of a block of short integers stay far below 64 bits, so only blocks are checked.
        constexpr std::size_t block = sizeof(Length) < 8 ? 4096 : 1;
        for (std::size_t begin = 0; begin < lengths.size(); begin += block) {
            add_block(lengths.subspan(begin, std::min(block, lengths.size() - begin)), max_length);
        }
    }

    void add(const Survey& other) {
        has_negative = has_negative || other.has_negative;
        longest = std::max(longest, other.longest);
        num_truncated += other.num_truncated;
        add_truncated(other.truncated);
        carries += other.carries;
    }

  private:
    template <class Length>
    void add_block(std::span<const Length> lengths, std::uint64_t max_length) {
        using Unsigned = std::make_unsigned_t<Length>;
        const auto limit = static_cast<Unsigned>(
            std::min<std::uint64_t>(max_length, std::numeric_limits<Unsigned>::max()));
        Length bits = 0;
        Unsigned most = 0;
        std::uint64_t over = 0;
        std::uint64_t excess = 0;
        for (const Length length : lengths) {
            const auto value = static_cast<Unsigned>(length);
            bits = static_cast<Length>(bits | length);
            most = std::max(most, value);
            over += value > limit ? 1 : 0;
            excess += static_cast<Unsigned>(std::max(value, limit) - limit);
        }
        has_negative = has_negative || bits < 0;
        longest = std::max<std::uint64_t>(longest, most);
        num_truncated += over;
        add_truncated(excess);
    }

    void add_truncated(std::uint64_t residues) {
        truncated += residues;
        carries += truncated < residues ? 1 : 0;
    }
};

template <class Length>
Survey survey(std::span<const Length> lengths, std::uint64_t max_length, int num_threads) {
    const int parts = num_parts(lengths.size(), 65536, num_threads);
    std::vector<Survey> surveys(static_cast<std::size_t>(parts));
    parallel_for(parts, [&](int part) noexcept {
        const auto [begin, end] = part_of(lengths.size(), parts, part);
        Survey mine;
        mine.add(lengths.subspan(begin, end - begin), max_length);
        surveys[static_cast<std::size_t>(part)] = mine;
    });
    Survey all;
    for (const Survey& mine : surveys) {
        all.add(mine);
    }
    return all;
}

template <class Length>
[[noreturn]] void throw_negative(std::span<const Length> lengths) {
    const auto found = std::ranges::find_if(lengths, [](Length length) { return length < 0; });
    if (found == lengths.end()) {
        throw std::invalid_argument("lengths changed while they were counted");
    }
    throw std::invalid_argument("lengths[" + std::to_string(found - lengths.begin()) +
                                "] is negative (got " + std::to_string(*found) + ")");
}

// Appends sizes from pairs (kept length, how many) that come longest first.
void append_size(TokenCounts& counts, std::uint64_t length, std::int64_t how_many) {
    counts.tokens.push_back(static_cast<std::int64_t>(length) + counts.special_tokens);
    counts.sequences.push_back(how_many);
}

template <class Length>
void count_in_table(TokenCounts& counts, std::span<const Length> lengths, std::uint64_t longest,
                    int num_threads) {
    Histogram histogram(lengths.size(), static_cast<std::size_t>(longest + 1), num_threads);
    parallel_for(histogram.num_parts(),
                 [&](int part) noexcept { histogram.add(part, lengths, DenseBins{longest}); });
    const std::span<std::int64_t> total = histogram.counts(0);
    for (int part = 1; part < histogram.num_parts(); ++part) {
        std::ranges::transform(total, histogram.counts(part), total.begin(), std::plus{});
    }
    for (std::size_t length = total.size(); length-- > 0;) {
        if (total[length] > 0) {
            append_size(counts, length, total[length]);
        }
    }
}

template <class Length>
void count_by_sorting(TokenCounts& counts, std::span<const Length> lengths, std::uint64_t longest) {
    std::vector<std::uint64_t> kept(lengths.size());
    std::ranges::transform(lengths, kept.begin(),
                           [&](Length length) { return std::min(as_unsigned(length), longest); });
    std::ranges::sort(kept, std::greater{});
    for (auto first = kept.begin(); first != kept.end();) {
        const auto last =
            std::find_if(first, kept.end(), [&](std::uint64_t length) { return length != *first; });
        append_size(counts, *first, last - first);
        first = last;
    }
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
TokenCounts count(std::span<const Length> lengths, std::int64_t max_length,
                  std::int64_t special_tokens, int num_threads) {
    if (max_length < 1 || special_tokens < 0 || max_length > most_tokens - special_tokens) {
        throw std::invalid_argument("max_length and special_tokens are out of range");
    }
    const auto limit = static_cast<std::uint64_t>(max_length);
    const Survey found = survey(lengths, limit, num_threads);
    if (found.has_negative) {
        throw_negative(lengths);
    }
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (found.carries > 0 || found.truncated > most) {
        throw std::overflow_error("the number of residues cut off does not fit in 64 bits");
    }
    TokenCounts counts;
    counts.max_length = max_length;
    counts.special_tokens = special_tokens;
    counts.num_truncated = static_cast<std::int64_t>(found.num_truncated);
    counts.truncated_tokens = static_cast<std::int64_t>(found.truncated);
    const std::uint64_t longest = std::min(limit, found.longest);
    if (dense_pays(longest + 1, lengths.size())) {
        count_in_table(counts, lengths, longest, num_threads);
    } else {
        count_by_sorting(counts, lengths, longest);
    }
    return counts;
}

template TokenCounts count(std::span<const std::int8_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::int16_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::int32_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::int64_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::uint8_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::uint16_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::uint32_t>, std::int64_t, std::int64_t, int);
template TokenCounts count(std::span<const std::uint64_t>, std::int64_t, std::int64_t, int);

std::int64_t TokenCounts::num_sequences() const {
    return sum(sequences, "the number of sequences");
}

std::int64_t TokenCounts::total_tokens() const {
    constexpr const char* what = "the number of tokens";
    std::int64_t total = 0;
    for (std::size_t size = 0; size < tokens.size(); ++size) {
        total = checked_add(total, checked_multiply(tokens[size], sequences[size], what), what);
    }
    return total;
}

void TokenCounts::validate() const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) {
            throw std::invalid_argument(std::string("not token counts: ") + what);
        }
    };
    require(max_length >= 1 && special_tokens >= 0 && max_length <= most_tokens - special_tokens,
            "a parameter is out of range");
    require(tokens.size() == sequences.size(), "sizes do not match counts");
    require(std::ranges::adjacent_find(tokens, std::less_equal{}) == tokens.end(),
            "sizes are out of order");
    require(tokens.empty() ||
                (tokens.front() <= max_length + special_tokens && tokens.back() >= special_tokens),
            "a size is out of range");
    require(std::ranges::all_of(sequences, [](std::int64_t n) { return n >= 1; }),
            "a count is not positive");
    require(num_truncated >= 0 && truncated_tokens >= num_truncated, "truncation is negative");
    const bool has_longest = !tokens.empty() && tokens.front() == max_length + special_tokens;
    require(num_truncated <= (has_longest ? sequences.front() : 0),
            "more sequences are truncated than are long");
    num_sequences();
    total_tokens();
}

TokenCounts add(const TokenCounts& a, const TokenCounts& b) {
    if (a.max_length != b.max_length || a.special_tokens != b.special_tokens) {
        const auto describe = [](const TokenCounts& counts) {
            return std::to_string(counts.max_length) + " residues and " +
                   std::to_string(counts.special_tokens) + " special tokens";
        };
        throw std::invalid_argument("counts were made with different limits: at most " +
                                    describe(a) + ", and at most " + describe(b));
    }
    TokenCounts sum;
    sum.max_length = a.max_length;
    sum.special_tokens = a.special_tokens;
    sum.num_truncated = checked_add(a.num_truncated, b.num_truncated, "the number of sequences");
    sum.truncated_tokens =
        checked_add(a.truncated_tokens, b.truncated_tokens, "the number of residues cut off");
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

}  // namespace packing
