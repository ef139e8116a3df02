#include "tests/cases.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "packing/checked.hpp"
#include "packing/knapsack.hpp"

namespace packing {

void fail(const Case& at, const std::string& what) {
    std::fprintf(
        stderr,
        "FAILED: %s\nmax_tokens_per_batch %lld, max_sequence_length %lld, special_tokens %lld, "
        "max_sequences_per_batch %lld, %d threads, %zu lengths:",
        what.c_str(), static_cast<long long>(at.limits.max_tokens_per_batch),
        static_cast<long long>(at.limits.max_sequence_length),
        static_cast<long long>(at.limits.special_tokens),
        static_cast<long long>(at.limits.max_sequences_per_batch), at.threads.most,
        at.lengths.size());
    for (const std::int64_t length : at.lengths) {
        std::fprintf(stderr, " %lld", static_cast<long long>(length));
    }
    std::fprintf(stderr, "\n");
    std::abort();
}

namespace {

// First-Fit Decreasing as it is defined, the rows taken in a given order.
std::vector<Rows> pack_naively(const Case& at, const Rows& order) {
    std::vector<Rows> batches;
    std::vector<std::int64_t> free;
    for (const std::int64_t row : order) {
        const std::int64_t tokens = at.tokens(at.lengths[static_cast<std::size_t>(row)]);
        std::size_t batch = 0;
        while (batch < batches.size() &&
               (free[batch] < tokens || static_cast<std::int64_t>(batches[batch].size()) >=
                                            at.limits.max_sequences_per_batch)) {
            ++batch;
        }
        if (batch == batches.size()) {
            batches.emplace_back();
            free.push_back(at.limits.max_tokens_per_batch);
        }
        batches[batch].push_back(row);
        free[batch] -= tokens;
    }
    return batches;
}

// Rows with the longest first, ties by less(row, row), then by row.
Rows in_order(const Case& at, const std::function<bool(std::size_t, std::size_t)>& less) {
    Rows order(at.lengths.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, [&](std::int64_t a, std::int64_t b) {
        const auto i = static_cast<std::size_t>(a);
        const auto j = static_cast<std::size_t>(b);
        const std::int64_t size_i = at.tokens(at.lengths[i]);
        const std::int64_t size_j = at.tokens(at.lengths[j]);
        if (size_i != size_j) {
            return size_i > size_j;
        }
        if (less(i, j) != less(j, i)) {
            return less(i, j);
        }
        return i < j;
    });
    return order;
}

// The same lengths in a narrower type where they fit.
template <class Length>
std::vector<Length> narrowed(const Case& at) {
    std::vector<Length> lengths;
    for (const std::int64_t length : at.lengths) {
        lengths.push_back(static_cast<Length>(length));
    }
    return lengths;
}

}  // namespace

Layout lay_out(const Case& at) {
    return first_fit_decreasing(
        count(std::span<const std::int64_t>(at.lengths), at.limits, at.threads));
}

std::vector<Rows> list(const Case& at, const Layout& layout, const Ids& ids) {
    std::vector<std::int32_t> rows(at.lengths.size());
    std::vector<std::int32_t> scratch(at.lengths.size());
    Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
    list_rows(layout, std::span<const std::int64_t>(at.lengths), ids, std::span(scratch),
              std::span(rows), std::span(offsets), at.threads);
    std::vector<Rows> batches;
    for (std::size_t batch = 0; batch + 1 < offsets.size(); ++batch) {
        batches.emplace_back(rows.begin() + offsets[batch], rows.begin() + offsets[batch + 1]);
    }
    return batches;
}

void check_places(const Case& at, const Layout& layout, const std::vector<Rows>& expected,
                  std::mt19937_64& random) {
    Rows batch_of(at.lengths.size());
    Rows slot_of(at.lengths.size());
    for (std::size_t batch = 0; batch < expected.size(); ++batch) {
        for (std::size_t slot = 0; slot < expected[batch].size(); ++slot) {
            const auto row = static_cast<std::size_t>(expected[batch][slot]);
            batch_of[row] = static_cast<std::int64_t>(batch);
            slot_of[row] = static_cast<std::int64_t>(slot);
        }
    }
    // In two pieces, counted apart.
    const std::span<const std::int64_t> lengths(at.lengths);
    const std::size_t cut = random() % (lengths.size() + 1);
    const TokenCounts first = count(lengths.first(cut), at.limits, at.threads);
    const TokenCounts rest = count(lengths.subspan(cut), at.limits, at.threads);
    if (add(first, rest) != layout.counts) {
        fail(at, "counts of pieces differ from counts of the whole");
    }
    TokenCounts none = layout.counts;
    none.tokens.clear();
    none.sequences.clear();
    for (const Place place : {Place::batch, Place::slot}) {
        std::vector<std::int32_t> out(lengths.size());
        const std::span all(out);
        assign(layout, lengths.first(cut), none, place, all.first(cut), at.threads);
        assign(layout, lengths.subspan(cut), first, place, all.subspan(cut), at.threads);
        if (!std::ranges::equal(out, place == Place::batch ? batch_of : slot_of)) {
            fail(at, place == Place::batch ? "batches of rows differ" : "slots of rows differ");
        }
    }
    if (std::ranges::all_of(at.lengths, [](std::int64_t length) { return length < 128; })) {
        Rows out(lengths.size());
        const std::vector<std::int8_t> narrow = narrowed<std::int8_t>(at);
        assign(layout, std::span<const std::int8_t>(narrow), none, Place::batch, std::span(out),
               at.threads);
        if (out != batch_of) {
            fail(at, "batches of narrow lengths differ");
        }
    }
}

namespace {

// Rows of equal size change places among themselves, in the same way on any number of threads.
void check_shuffled(const Case& at, const Layout& layout, std::mt19937_64& random) {
    const Ids by_row;
    const std::vector<Rows> listed = list(at, layout, by_row);
    Rows rows;
    for (const Rows& batch : listed) {
        rows.insert(rows.end(), batch.begin(), batch.end());
    }
    const std::uint64_t seed = random();
    Rows scratch(rows.size());
    Rows shuffled(rows.size());
    Rows alone(rows.size());
    const std::span<const std::int64_t> from(rows);
    shuffle_rows(layout, from, seed, std::span(scratch), std::span(shuffled), at.threads);
    shuffle_rows(layout, from, seed, std::span(scratch), std::span(alone), 1);
    if (shuffled != alone) {
        fail(at, "threads change how rows are shuffled");
    }
    for (std::size_t slot = 0; slot < rows.size(); ++slot) {
        const auto tokens = [&](std::int64_t row) {
            return at.tokens(at.lengths[static_cast<std::size_t>(row)]);
        };
        if (tokens(rows[slot]) != tokens(shuffled[slot])) {
            fail(at, "shuffling changes the tokens of a slot");
        }
    }
    std::ranges::sort(rows);
    std::ranges::sort(shuffled);
    if (rows != shuffled) {
        fail(at, "shuffling loses rows");
    }
}

void check_ids(const Case& at, const Layout& layout, std::mt19937_64& random) {
    const std::size_t num_rows = at.lengths.size();
    Rows numbers(num_rows);
    for (std::int64_t& number : numbers) {
        number = static_cast<std::int64_t>(random() % 5) - 2;
    }
    const auto by_number = [&](std::size_t i, std::size_t j) { return numbers[i] < numbers[j]; };
    if (list(at, layout, std::span<const std::int64_t>(numbers)) !=
        pack_naively(at, in_order(at, by_number))) {
        fail(at, "ties by number differ");
    }

    // Each text in a width of its own, as Python stores them.
    const std::uint32_t largest[] = {1, 0xff, 0xffff, 0x10ffff, 0xffffffff};
    const std::uint32_t most = largest[random() % std::size(largest)];
    // Most texts have none of the large points.
    const std::uint32_t common = std::min<std::uint32_t>(most, 4);
    const std::size_t shared = random() % 20;
    std::vector<std::vector<std::uint32_t>> points(num_rows);
    std::vector<std::vector<std::uint8_t>> bytes(num_rows);
    std::vector<std::vector<std::uint16_t>> pairs(num_rows);
    std::vector<Text> texts;
    for (std::size_t row = 0; row < num_rows; ++row) {
        std::vector<std::uint32_t>& text = points[row];
        text.assign(shared, common);
        const std::uint32_t high = random() % 4 == 0 ? most : common;
        for (std::size_t length = random() % 14; length > 0; --length) {
            const auto point = static_cast<std::uint32_t>(random());
            text.push_back(random() % 2 == 0    ? high
                           : high == 0xffffffff ? point
                                                : point % (high + 1));
        }
        const std::uint32_t widest = text.empty() ? 0 : *std::ranges::max_element(text);
        if (widest <= 0xff) {
            for (const std::uint32_t point : text) {
                bytes[row].push_back(static_cast<std::uint8_t>(point));
            }
            texts.emplace_back(bytes[row].data(), text.size(), 1U);
        } else if (widest <= 0xffff) {
            for (const std::uint32_t point : text) {
                pairs[row].push_back(static_cast<std::uint16_t>(point));
            }
            texts.emplace_back(pairs[row].data(), text.size(), 2U);
        } else {
            texts.emplace_back(text.data(), text.size(), 4U);
        }
    }
    const auto by_text = [&](std::size_t i, std::size_t j) { return points[i] < points[j]; };
    if (list(at, layout, std::span<const Text>(texts)) != pack_naively(at, in_order(at, by_text))) {
        fail(at, "ties by text differ");
    }
}

// The most that a batch is worth, sequences taken one at a time.
std::int64_t most_worth(const Case& at, const TokenCounts& counts, const Rows& values) {
    const auto width = static_cast<std::size_t>(at.limits.max_tokens_per_batch) + 1;
    const auto most = static_cast<std::size_t>(std::min<std::int64_t>(
        at.limits.max_sequences_per_batch, static_cast<std::int64_t>(at.lengths.size())));
    std::vector<Rows> best(most + 1, Rows(width));  // by sequences at most, and tokens at most
    for (std::size_t size = 0; size < counts.tokens.size(); ++size) {
        const auto tokens = static_cast<std::size_t>(counts.tokens[size]);
        for (std::int64_t i = 0; tokens > 0 && i < counts.sequences[size]; ++i) {
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

std::vector<Pattern> check_most_valuable(const Case& at, const TokenCounts& counts,
                                         std::mt19937_64& random) {
    Rows values(counts.tokens.size());
    for (std::int64_t& value : values) {
        value = static_cast<std::int64_t>(random() % 24) - 3;
    }
    const std::int64_t best = most_worth(at, counts, values);
    const std::size_t most = random() % 4;
    const Priced priced = most_valuable(counts, values, random() % 50, most);
    if (priced.best != best) {
        fail(at, "the most valuable batch is worth " + std::to_string(best) + ", not " +
                     std::to_string(priced.best));
    }
    if (priced.patterns.size() > most || (most > 0 && best > 0 && priced.patterns.empty())) {
        fail(at, "the number of valuable batches is wrong");
    }
    std::int64_t before = best + 1;
    for (const Pattern& pattern : priced.patterns) {
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
        if (worth >= before) {
            fail(at, "a valuable batch is worth as much as the one before it");
        }
        before = worth;
        if (tokens > at.limits.max_tokens_per_batch || number > at.limits.max_sequences_per_batch) {
            fail(at, "a valuable batch exceeds a limit");
        }
    }
    return priced.patterns;
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

// Layouts of patterns, and the patterns of layouts.
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
        const std::vector<Pattern> priced = check_most_valuable(at, counts, random);
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
    const Layout filled = layout_of(counts, patterns, num_batches);
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

// The bound of Martello and Toth by its definition, for every threshold up to half the budget at
// which it can change.
std::int64_t bound_naively(const Case& at) {
    std::int64_t bound = 0;
    Rows thresholds{0};
    for (const std::int64_t length : at.lengths) {
        if (at.tokens(length) <= at.limits.max_tokens_per_batch / 2) {
            thresholds.push_back(at.tokens(length));
        }
    }
    for (const std::int64_t threshold : thresholds) {
        std::int64_t num_large = 0;
        std::int64_t small_tokens = 0;
        std::int64_t room = 0;
        for (const std::int64_t length : at.lengths) {
            const std::int64_t tokens = at.tokens(length);
            if (tokens > at.limits.max_tokens_per_batch / 2) {
                ++num_large;
                room += tokens <= at.limits.max_tokens_per_batch - threshold
                            ? at.limits.max_tokens_per_batch - tokens
                            : 0;
            } else if (tokens >= threshold) {
                small_tokens += tokens;
            }
        }
        bound =
            std::max(bound, num_large + ceil_divide(std::max<std::int64_t>(0, small_tokens - room),
                                                    at.limits.max_tokens_per_batch));
    }
    return std::max(bound, ceil_divide(static_cast<std::int64_t>(at.lengths.size()),
                                       at.limits.max_sequences_per_batch));
}

}  // namespace

void check(const Case& at, std::mt19937_64& random) {
    const Layout layout = lay_out(at);
    layout.validate();
    const auto by_row = [](std::size_t, std::size_t) { return false; };
    const std::vector<Rows> expected = pack_naively(at, in_order(at, by_row));
    if (layout.num_batches != static_cast<std::int64_t>(expected.size())) {
        fail(at, "the number of batches differs");
    }
    if (list(at, layout, Ids{}) != expected) {
        fail(at, "batches differ");
    }
    if (const std::int64_t bound = lower_bound(layout);
        bound != bound_naively(at) || bound > layout.num_batches) {
        fail(at, "the lower bound differs");
    }
    Rows tokens(expected.size());
    batch_tokens(layout, tokens);
    for (std::size_t batch = 0; batch < expected.size(); ++batch) {
        std::int64_t sum = 0;
        for (const std::int64_t row : expected[batch]) {
            sum += at.tokens(at.lengths[static_cast<std::size_t>(row)]);
        }
        if (tokens[batch] != sum) {
            fail(at, "the tokens of a batch differ");
        }
    }
    check_places(at, layout, expected, random);
    check_shuffled(at, layout, random);
    check_ids(at, layout, random);
    check_patterns(at, layout, random);
}

Case random_case(std::mt19937_64& random, std::uint64_t in_parts) {
    const auto below = [&](std::int64_t end) {
        return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
    };
    Case at;
    at.limits.special_tokens = below(3);
    const std::int64_t scales[] = {12, 100, 5000, std::int64_t{1} << 50};
    at.limits.max_tokens_per_batch = at.limits.special_tokens + 1 + below(scales[below(4)]);
    const std::int64_t room = at.limits.max_tokens_per_batch - at.limits.special_tokens;
    at.limits.max_sequence_length = below(2) == 0 ? room + below(2) * below(1000) : 1 + below(1100);
    at.limits.max_sequences_per_batch = below(3) == 0 ? 1 + below(6) : unlimited;
    const int threads[] = {1, 2, 7};
    at.threads.most = threads[below(3)];
    if (random() % in_parts == 0) {
        at.threads.least_part = 1;
    }
    at.lengths.resize(static_cast<std::size_t>(below(below(20) == 0 ? 400 : 40)));
    const std::int64_t kind = below(5);
    for (std::int64_t& length : at.lengths) {
        switch (kind) {
            case 0:
                length = below(3);
                break;
            case 1:
                length = below(std::min(at.limits.max_sequence_length, room) + 4);
                break;
            case 2:
                length = room / 3 + below(room / 6 + 2);
                break;
            case 3:
                length = below(4) * (room / 4) + below(2);
                break;
            default:
                length = below(std::int64_t{1} << below(41));
        }
    }
    return at;
}

}  // namespace packing
