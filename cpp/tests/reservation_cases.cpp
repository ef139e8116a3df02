#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "packing/checked.hpp"
#include "packing/reservation.hpp"
#include "tests/cases.hpp"

namespace packing {

namespace {

using Numbers = std::vector<std::int64_t>;

// Some slots of a batch, and the sizes [first, last) that they may take.
struct Slots {
    std::size_t first;
    std::size_t last;
    std::int64_t number;
};

// The smallest sequences that remain, in increasing order: at most as many as there are slots, and
// as fit in a budget.
Rows smallest_of(const TokenCounts& counts, const Numbers& left, const Slots& slots) {
    Rows smallest;
    std::int64_t free = counts.limits.max_tokens_per_batch;
    for (std::size_t size = slots.last; size-- > slots.first;) {
        for (std::int64_t i = 0; i < left[size]; ++i) {
            if (static_cast<std::int64_t>(smallest.size()) == slots.number ||
                counts.tokens[size] > free) {
                return smallest;
            }
            smallest.push_back(counts.tokens[size]);
            free -= counts.tokens[size];
        }
    }
    return smallest;
}

// One batch, filled with one sequence after another: sequences of each size.
Numbers fill_one_by_one(const TokenCounts& counts, const Numbers& left,
                        const std::vector<std::pair<Slots, Rows>>& parts) {
    Numbers batch(left.size());
    std::int64_t free = counts.limits.max_tokens_per_batch;
    std::int64_t places = counts.limits.max_sequences_per_batch;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const auto& [slots, smallest] = parts[i];
        std::size_t size = slots.first;
        for (std::int64_t slot = 0; slot < slots.number && places > 0; ++slot) {
            // What the later slots need, of this part and of those after it.
            std::int64_t reserved = 0;
            for (std::size_t later = i + 1; later < parts.size(); ++later) {
                reserved =
                    std::reduce(parts[later].second.begin(), parts[later].second.end(), reserved);
            }
            const std::int64_t others = static_cast<std::int64_t>(smallest.size()) - slot - 1;
            for (std::int64_t other = 0; other < others; ++other) {
                reserved += smallest[static_cast<std::size_t>(other)];
            }
            while (size < slots.last &&
                   (batch[size] == left[size] || counts.tokens[size] > free - reserved)) {
                ++size;
            }
            if (size == slots.last) {
                break;
            }
            ++batch[size];
            free -= counts.tokens[size];
            --places;
        }
    }
    return batch;
}

// Patterns with the number of batches of each, and the sequences in none of them.
struct Naive {
    explicit Naive(const TokenCounts& given) : counts(given), left(given.sequences) {}

    const TokenCounts& counts;
    Numbers left;
    std::vector<Pattern> patterns;
    Numbers num_batches;
    std::int64_t num_parts = 0;

    // Uses a batch as often as the remaining sequences allow; returns how often.
    std::int64_t use(const Numbers& batch, std::int64_t most) {
        Pattern& pattern = patterns.emplace_back();
        for (std::size_t size = 0; size < batch.size(); ++size) {
            if (batch[size] > 0) {
                pattern.push_back({size, batch[size]});
                most = std::min(most, left[size] / batch[size]);
            }
        }
        for (const auto& [size, sequences] : pattern) {
            left[size] -= most * sequences;
        }
        num_parts += static_cast<std::int64_t>(pattern.size());
        num_batches.push_back(most);
        return most;
    }
};

Layout reserve_naively(const TokenCounts& counts, std::int64_t max_parts) {
    Naive naive(counts);
    const auto [budget, places] =
        std::pair(counts.limits.max_tokens_per_batch, counts.limits.max_sequences_per_batch);
    for (;;) {
        const std::int64_t sequences = std::reduce(naive.left.begin(), naive.left.end());
        if (sequences == 0 || naive.num_parts >= max_parts) {
            return layout_from_patterns(counts, naive.patterns, naive.num_batches);
        }
        const std::int64_t tokens = std::inner_product(naive.left.begin(), naive.left.end(),
                                                       counts.tokens.begin(), std::int64_t{0});
        const std::int64_t batches = std::max<std::int64_t>(1, ceil_divide(tokens, budget));
        const std::int64_t mean = std::min(places, ceil_divide(sequences, batches));
        const Slots all{0, counts.tokens.size(), places};
        const Rows smallest = smallest_of(counts, naive.left, {all.first, all.last, mean});
        naive.use(fill_one_by_one(counts, naive.left, {{all, smallest}}), unlimited);
    }
}

Refined refine_naively(const TokenCounts& counts, const std::vector<std::size_t>& first_size,
                       const std::vector<Pattern>& patterns, const Numbers& num_batches) {
    Naive naive(counts);
    for (std::size_t i = 0; i < patterns.size(); ++i) {
        for (std::int64_t most = num_batches[i]; most > 0;) {
            std::vector<std::pair<Slots, Rows>> parts;
            std::int64_t reserved = 0;
            for (const auto& [size, sequences] : patterns[i]) {
                const Slots slots{first_size[size], first_size[size + 1], sequences};
                parts.emplace_back(slots, smallest_of(counts, naive.left, slots));
                const Rows& smallest = parts.back().second;
                reserved = std::reduce(smallest.begin(), smallest.end(), reserved);
            }
            if (reserved > counts.limits.max_tokens_per_batch) {
                break;
            }
            const Numbers batch = fill_one_by_one(counts, naive.left, parts);
            if (std::ranges::count(batch, 0) == static_cast<std::ptrdiff_t>(batch.size())) {
                break;
            }
            most -= naive.use(batch, most);
        }
    }
    return {naive.patterns, naive.num_batches, naive.left};
}

CoarseCounts check_coarse(const Case& at, const TokenCounts& counts, std::int64_t unit,
                          std::size_t max_sizes, Rounding rounding) {
    CoarseCounts coarse = coarsen(counts, unit, max_sizes, rounding);
    const std::vector<std::size_t>& first = coarse.first_size;
    const TokenCounts& joint = coarse.counts;
    const std::size_t number = joint.tokens.size();
    if (joint.limits.max_tokens_per_batch != at.limits.max_tokens_per_batch / unit ||
        joint.limits.max_sequences_per_batch != at.limits.max_sequences_per_batch) {
        fail(at, "the limits of joint sizes are wrong");
    }
    if (joint.sequences.size() != number || first.size() != number + 1 || first.front() != 0 ||
        first.back() != counts.tokens.size() || number > 3 * max_sizes + 1 ||
        (max_sizes >= counts.tokens.size() && unit == 1 && joint.tokens != counts.tokens)) {
        fail(at, "the number of joint sizes is wrong");
    }
    for (std::size_t size = 0; size < number; ++size) {
        const std::int64_t tokens = joint.tokens[size];
        if (size > 0 && tokens >= joint.tokens[size - 1]) {
            fail(at, "joint sizes are not in decreasing order");
        }
        if (first[size] >= first[size + 1] ||
            joint.sequences[size] !=
                std::accumulate(
                    counts.sequences.begin() + static_cast<std::ptrdiff_t>(first[size]),
                    counts.sequences.begin() + static_cast<std::ptrdiff_t>(first[size + 1]),
                    std::int64_t{0})) {
            fail(at, "the sequences of a joint size are wrong");
        }
        const std::int64_t largest = counts.tokens[first[size]];
        const std::int64_t least = counts.tokens[first[size + 1] - 1];
        const bool is_right = rounding == Rounding::down
                                  ? tokens == least / unit
                                  : tokens <= joint.limits.max_tokens_per_batch &&
                                        (tokens == joint.limits.max_tokens_per_batch ||
                                         tokens * unit >= least - (unit - 1) / 2 - 1) &&
                                        tokens * unit <= largest + unit / 2;
        if (!is_right) {
            fail(at, "a joint size is rounded wrongly");
        }
    }
    return coarse;
}

void check_refined(const Case& at, const TokenCounts& counts, std::mt19937_64& random) {
    const std::int64_t units[] = {1, 1 + static_cast<std::int64_t>(random() % 12),
                                  std::max<std::int64_t>(1, at.limits.max_tokens_per_batch / 9)};
    const std::int64_t unit = std::min(units[random() % 3], at.limits.max_tokens_per_batch);
    const std::size_t max_sizes = 1 + random() % 20;
    const CoarseCounts lower = check_coarse(at, counts, unit, max_sizes, Rounding::down);
    const CoarseCounts coarse = check_coarse(at, counts, unit, max_sizes, Rounding::nearest);
    const Layout layout = first_fit_decreasing(counts);
    if (lower_bound(first_fit_decreasing(lower.counts)) > layout.num_batches) {
        fail(at, "a bound of joint sizes does not hold");
    }
    auto [patterns, numbers] = patterns_of(first_fit_decreasing(coarse.counts));
    for (Pattern& pattern : patterns) {
        // Some more sequences than there are, and than fit.
        if (random() % 4 == 0 && !pattern.empty()) {
            pattern[random() % pattern.size()].sequences += static_cast<std::int64_t>(random() % 9);
        }
    }
    for (std::int64_t& number : numbers) {
        number = std::max<std::int64_t>(1, number + static_cast<std::int64_t>(random() % 4) - 2);
    }
    const Refined refined = refine(counts, coarse.first_size, patterns, numbers);
    const Refined expected = refine_naively(counts, coarse.first_size, patterns, numbers);
    if (refined.patterns != expected.patterns || refined.num_batches != expected.num_batches ||
        refined.remaining != expected.remaining) {
        fail(at, "batches like those of joint sizes differ");
    }
    // Refuses batches above a limit.
    layout_from_patterns(counts, refined.patterns, refined.num_batches);
}

}  // namespace

void check_reservation(const Case& at, const TokenCounts& counts, std::mt19937_64& random) {
    Case limited = at;
    if (random() % 2 == 0) {
        limited.limits.max_sequences_per_batch = 1 + static_cast<std::int64_t>(random() % 9);
    }
    const TokenCounts some = with_limits(counts, limited.limits);
    const std::int64_t max_parts =
        random() % 4 == 0 ? static_cast<std::int64_t>(random() % 20) : max_parts_of_patterns;
    const Layout layout = patterns_with_reservation(some, max_parts);
    layout.validate();
    if (layout != reserve_naively(some, max_parts)) {
        fail(limited, "patterns with reservation differ");
    }
    check_refined(limited, some, random);
}

}  // namespace packing
