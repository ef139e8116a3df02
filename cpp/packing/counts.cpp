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

// What one look at the lengths tells, besides how many there are of each.
struct Survey {
    bool has_negative = false;
    std::uint64_t truncated = 0;  // residues that are not kept, modulo 2^64
    std::uint64_t carries = 0;    // multiples of 2^64

    // Adds a block: few enough that sums of integers of at most 32 bits stay far below 64 bits.
    template <class Length>
    void add(std::span<const Length> block, std::uint64_t max_residues) {
        using Unsigned = std::make_unsigned_t<Length>;
        const auto limit = static_cast<Unsigned>(
            std::min<std::uint64_t>(max_residues, std::numeric_limits<Unsigned>::max()));
        Length bits = 0;
        std::uint64_t excess = 0;
        for (const Length length : block) {
            const auto cut =
                static_cast<Unsigned>(std::max(static_cast<Unsigned>(length), limit) - limit);
            bits = static_cast<Length>(bits | length);
            excess += cut;
            if constexpr (sizeof(Length) == 8) {
                carries += excess < cut ? 1 : 0;
            }
        }
        has_negative = has_negative || bits < 0;
        add_truncated(excess);
    }

    void add(const Survey& other) {
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

// Looks at the lengths part by part, and hands each block of them to use(part, block) as well.
template <class Length, class Use>
Survey survey(std::span<const Length> lengths, std::uint64_t max_residues, int num_parts,
              const Use& use) {
    constexpr std::size_t block = 4096;
    std::vector<Survey> surveys(static_cast<std::size_t>(num_parts));
    parallel_for(num_parts, [&](int part) noexcept {
        const auto [begin, end] = part_of(lengths.size(), num_parts, part);
        Survey mine;
        for (std::size_t row = begin; row < end; row += block) {
            const auto some = lengths.subspan(row, std::min(block, end - row));
            mine.add(some, max_residues);
            use(part, some);
        }
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

// Adds sequences of a length. The longest come first; those above the limit all have the length
// after it.
void add_length(TokenCounts& counts, std::uint64_t length, std::int64_t how_many) {
    const auto limit = static_cast<std::uint64_t>(counts.limits.max_residues());
    const std::int64_t tokens =
        static_cast<std::int64_t>(std::min(length, limit)) + counts.limits.special_tokens;
    if (length > limit) {
        counts.num_truncated = how_many;
    }
    if (!counts.tokens.empty() && counts.tokens.back() == tokens) {
        counts.sequences.back() += how_many;
    } else {
        counts.tokens.push_back(tokens);
        counts.sequences.push_back(how_many);
    }
}

void add_table(TokenCounts& counts, Histogram& histogram) {
    const std::span<std::int64_t> total = histogram.counts(0);
    for (int part = 1; part < histogram.num_parts(); ++part) {
        std::ranges::transform(total, histogram.counts(part), total.begin(), std::plus{});
    }
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
            return std::to_string(limits.max_residues()) + " residues and " +
                   std::to_string(limits.special_tokens) + " special tokens";
        };
        throw std::invalid_argument("counts were made with different limits: at most " +
                                    describe(a) + ", and at most " + describe(b));
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
TokenCounts count(std::span<const Length> lengths, const Limits& limits, Threads threads) {
    limits.validate();
    const auto limit = static_cast<std::uint64_t>(limits.max_residues());
    // Where a table of all lengths is small, the first look fills it.
    const bool is_small = limit < 4096;
    Histogram small(lengths.size(), is_small ? static_cast<std::size_t>(limit + 2) : 0, threads);
    const Survey found = survey(lengths, limit, small.num_parts(), [&](int part, auto block) {
        if (is_small) {
            small.add(part, block, DenseBins{limit + 1});
        }
    });
    if (found.has_negative) {
        throw_negative(lengths);
    }
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (found.carries > 0 || found.truncated > most) {
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
    if (dense_pays(longest + 1, lengths.size())) {
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
    return total;
}

void TokenCounts::validate() const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) {
            throw std::invalid_argument(std::string("not token counts: ") + what);
        }
    };
    limits.validate();
    const std::int64_t longest = limits.tokens(unlimited);
    require(tokens.size() == sequences.size(), "sizes do not match counts");
    require(std::ranges::adjacent_find(tokens, std::less_equal{}) == tokens.end(),
            "sizes are out of order");
    require(tokens.empty() || (tokens.front() <= longest && tokens.back() >= limits.special_tokens),
            "a size is out of range");
    require(std::ranges::all_of(sequences, [](std::int64_t n) { return n >= 1; }),
            "a count is not positive");
    require(num_truncated >= 0 && truncated_residues >= num_truncated &&
                (truncated_residues == 0 || num_truncated > 0),
            "truncation does not add up");
    const bool has_longest = !tokens.empty() && tokens.front() == longest;
    require(num_truncated <= (has_longest ? sequences.front() : 0),
            "more sequences are truncated than are long");
    num_sequences();
    total_tokens();
}

TokenCounts add(const TokenCounts& a, const TokenCounts& b) {
    require_same_tokens(a.limits, b.limits);
    TokenCounts sum;
    sum.limits = a.limits;
    sum.num_truncated = checked_add(a.num_truncated, b.num_truncated, "the number of sequences");
    sum.truncated_residues =
        checked_add(a.truncated_residues, b.truncated_residues, "the number of truncated residues");
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
    TokenCounts some;
    some.limits = counts.limits;
    for (std::size_t size = 0; size < sequences.size(); ++size) {
        if (sequences[size] < 0 || sequences[size] > counts.sequences[size]) {
            throw std::invalid_argument("there are not so many sequences of a size");
        }
        if (sequences[size] > 0) {
            some.tokens.push_back(counts.tokens[size]);
            some.sequences.push_back(sequences[size]);
        }
    }
    return some;
}

}  // namespace packing
