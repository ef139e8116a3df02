#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "packing/pricing.hpp"
#include "tests/cases.hpp"

namespace packing {

namespace {

// The most that a batch is worth, sequences taken one at a time.
std::int64_t most_worth(const Case& at, const TokenCounts& counts, const Rows& values) {
    const auto width = static_cast<std::size_t>(at.limits.max_tokens_per_batch) + 1;
    const auto most = static_cast<std::size_t>(std::min<std::int64_t>(
        at.limits.max_sequences_per_batch, static_cast<std::int64_t>(at.lengths.size())));
    std::vector<Rows> best(most + 1, Rows(width));  // by sequences at most, and tokens at most
    for (std::size_t size = 0; size < counts.tokens.size(); ++size) {
        const auto tokens = static_cast<std::size_t>(counts.tokens[size]);
        for (std::int64_t i = 0; i < counts.sequences[size]; ++i) {
            for (std::size_t number = most; number > 0; --number) {
                for (std::size_t room = width; room-- > tokens;) {
                    best[number][room] = std::max(best[number][room],
                                                  best[number - 1][room - tokens] + values[size]);
                }
            }
        }
    }
    return best[most].back();
}

std::vector<Pattern> check_pricing(const Case& at, const TokenCounts& counts,
                                   std::mt19937_64& random) {
    Rows values(counts.tokens.size());
    for (std::int64_t& value : values) {
        value = static_cast<std::int64_t>(random() % 24) - 3;
    }
    const std::int64_t best = most_worth(at, counts, values);
    const std::size_t most = random() % 4;
    const Pricing pricing = price_patterns(counts, values, random() % 50, most);
    if (pricing.best_value != best) {
        fail(at, "the most valuable batch is worth " + std::to_string(best) + ", not " +
                     std::to_string(pricing.best_value));
    }
    if (pricing.patterns.size() > most || (most > 0 && best > 0 && pricing.patterns.empty())) {
        fail(at, "the number of valuable batches is wrong");
    }
    std::int64_t before = best + 1;
    for (const Pattern& pattern : pricing.patterns) {
        std::int64_t worth = 0;
        std::int64_t tokens = 0;
        std::int64_t number = 0;
        for (const auto& [size, sequences] : pattern) {
            worth += values[size] * sequences;
            tokens += counts.tokens[size] * sequences;
            number += sequences;
            if (sequences < 1 || sequences > counts.sequences[size]) {
                fail(at, "a valuable batch has sequences that there are not");
            }
        }
        if (worth <= 0 || (before > best && worth != best)) {
            fail(at, "a valuable batch is worth too little");
        }
        before = worth;
        if (tokens > at.limits.max_tokens_per_batch || number > at.limits.max_sequences_per_batch) {
            fail(at, "a valuable batch exceeds a limit");
        }
    }
    return pricing.patterns;
}

// Batches by sequences of each size, where so many follow patterns and the sequences left over go
// to the first one that has room, one at a time.
std::vector<Rows> fill_naively(const Case& at, const TokenCounts& counts,
                               const std::vector<Pattern>& patterns, const Rows& num_batches) {
    std::vector<Rows> batches;
    Rows left = counts.sequences;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
        for (std::int64_t n = 0; n < num_batches[i]; ++n) {
            Rows& batch = batches.emplace_back(left.size());
            for (const auto& [size, sequences] : patterns[i]) {
                batch[size] = sequences;
                left[size] -= sequences;
            }
        }
    }
    const auto has_room = [&](const Rows& batch, std::int64_t tokens) {
        return std::accumulate(batch.begin(), batch.end(), std::int64_t{0}) <
                   at.limits.max_sequences_per_batch &&
               std::inner_product(batch.begin(), batch.end(), counts.tokens.begin(), tokens) <=
                   at.limits.max_tokens_per_batch;
    };
    for (std::size_t size = 0; size < left.size(); ++size) {
        for (; left[size] > 0; --left[size]) {
            auto batch = std::ranges::find_if(
                batches, [&](const Rows& some) { return has_room(some, counts.tokens[size]); });
            if (batch == batches.end()) {
                batch = batches.insert(batch, Rows(left.size()));
            }
            ++(*batch)[size];
        }
    }
    // In order of sizes, and the most sequences of a size first.
    std::ranges::sort(batches, {}, [](const Rows& batch) {
        std::vector<std::pair<std::size_t, std::int64_t>> key;
        for (std::size_t size = 0; size < batch.size(); ++size) {
            if (batch[size] > 0) {
                key.emplace_back(size, -batch[size]);
            }
        }
        return key;
    });
    return batches;
}

}  // namespace

void check_patterns(const Case& at, const Layout& layout, std::mt19937_64& random) {
    const TokenCounts& counts = layout.counts;
    const std::int64_t most_states =
        at.lengths.size() > 40 || at.limits.max_tokens_per_batch > 5200
            ? std::numeric_limits<std::int64_t>::max()
            : at.limits.max_tokens_per_batch * static_cast<std::int64_t>(at.lengths.size()) *
                  std::min<std::int64_t>(at.limits.max_sequences_per_batch,
                                         static_cast<std::int64_t>(at.lengths.size()));
    std::vector<Pattern> choice = patterns_of(layout).first;
    if (most_states < 100'000) {
        const std::vector<Pattern> priced = check_pricing(at, counts, random);
        choice.insert(choice.end(), priced.begin(), priced.end());
    }
    std::ranges::shuffle(choice, random);
    std::vector<Pattern> patterns;
    Rows num_batches;
    Rows left = counts.sequences;
    for (const Pattern& pattern : choice) {
        std::int64_t most = std::numeric_limits<std::int64_t>::max();
        for (const auto& [size, sequences] : pattern) {
            most = std::min(most, left[size] / sequences);
        }
        const std::int64_t number =
            pattern.empty()
                ? 0
                : static_cast<std::int64_t>(random() % (static_cast<std::uint64_t>(most) + 1));
        if (number > 0) {
            for (const auto& [size, sequences] : pattern) {
                left[size] -= sequences * number;
            }
            patterns.push_back(pattern);
            num_batches.push_back(number);
        }
    }
    const Layout filled = layout_from_patterns(counts, patterns, num_batches);
    std::vector<Rows> batches;
    const auto [found, numbers] = patterns_of(filled);
    for (std::size_t i = 0; i < found.size(); ++i) {
        Rows batch(counts.tokens.size());
        for (const auto& [size, sequences] : found[i]) {
            batch[size] = sequences;
        }
        batches.insert(batches.end(), static_cast<std::size_t>(numbers[i]), batch);
    }
    if (batches != fill_naively(at, counts, patterns, num_batches)) {
        fail(at, "batches filled by patterns differ");
    }
    auto expected = batches.begin();
    for (const Rows& rows : list(at, filled, Ids{})) {
        Rows batch(counts.tokens.size());
        std::size_t before = 0;
        for (const std::int64_t row : rows) {
            const std::int64_t tokens = at.tokens(at.lengths[static_cast<std::size_t>(row)]);
            const auto size = static_cast<std::size_t>(
                std::ranges::lower_bound(counts.tokens, tokens, std::greater{}) -
                counts.tokens.begin());
            if (size < before) {
                fail(at, "a longer sequence comes later in its batch");
            }
            before = size;
            ++batch[size];
        }
        if (expected == batches.end() || batch != *expected++) {
            fail(at, "rows of batches filled by patterns differ");
        }
    }
}

}  // namespace packing
