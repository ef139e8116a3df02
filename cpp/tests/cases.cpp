#include "tests/cases.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>

#include "packing/checked.hpp"
#include "packing/ranks.hpp"

namespace packing {

void fail(const Case& at, const std::string& what) {
    std::fprintf(
        stderr,
        "FAILED: %s\nmax_tokens_per_batch %lld, max_sequence_length %lld, special_tokens %lld, "
        "max_sequences_per_batch %lld, multiple_of %lld, %d threads, %zu lengths:",
        what.c_str(), static_cast<long long>(at.limits.max_tokens_per_batch),
        static_cast<long long>(at.limits.max_sequence_length),
        static_cast<long long>(at.limits.special_tokens),
        static_cast<long long>(at.limits.max_sequences_per_batch),
        static_cast<long long>(at.limits.multiple_of), at.threads.max, at.lengths.size());
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

namespace {

// Sequences by their tokens and their number among those of their size, in row order and at random.
template <class Number>
void check_ranks(const Case& at, const Layout& layout, const Rows& batch_of, const Rows& slot_of,
                 std::mt19937_64& random) {
    const std::size_t num_rows = at.lengths.size();
    std::map<std::int64_t, std::int64_t> numbers;
    Rows rank_of(num_rows);
    for (std::size_t row = 0; row < num_rows; ++row) {
        rank_of[row] = numbers[at.tokens(at.lengths[row])]++;
    }
    Rows tokens(num_rows);
    std::vector<std::int32_t> ranks(num_rows);
    Rows order(num_rows);
    std::iota(order.begin(), order.end(), 0);
    for (const bool by_row : {true, false}) {
        if (!by_row) {
            std::ranges::shuffle(order, random);
        }
        for (std::size_t i = 0; i < num_rows; ++i) {
            const auto row = static_cast<std::size_t>(order[i]);
            tokens[i] = at.tokens(at.lengths[row]);
            ranks[i] = static_cast<std::int32_t>(rank_of[row]);
        }
        // In two pieces, of which the smaller may have fewer rows than there are sizes.
        const std::size_t cut = random() % (num_rows + 1);
        std::vector<Number> batches(num_rows);
        std::vector<Number> slots(num_rows);
        for (const auto& [begin, end] : {std::pair{std::size_t{0}, cut}, {cut, num_rows}}) {
            place_ranks(layout, std::span<const std::int64_t>(tokens).subspan(begin, end - begin),
                        std::span<const std::int32_t>(ranks).subspan(begin, end - begin),
                        std::span(batches).subspan(begin, end - begin),
                        std::span(slots).subspan(begin, end - begin), at.threads);
        }
        for (std::size_t i = 0; i < num_rows; ++i) {
            const auto row = static_cast<std::size_t>(order[i]);
            if (batches[i] != batch_of[row] || slots[i] != slot_of[row]) {
                fail(at, "places of sequences by their rank differ");
            }
        }
    }
}

}  // namespace

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
    check_ranks<std::int32_t>(at, layout, batch_of, slot_of, random);
    check_ranks<std::int64_t>(at, layout, batch_of, slot_of, random);
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
    // More than all keys of a text hold.
    const std::size_t long_ties = random() % 4 == 0 ? 70 : 0;
    std::vector<std::vector<std::uint32_t>> points(num_rows);
    std::vector<std::vector<std::uint8_t>> bytes(num_rows);
    std::vector<std::vector<std::uint16_t>> pairs(num_rows);
    std::vector<Text> texts;
    for (std::size_t row = 0; row < num_rows; ++row) {
        std::vector<std::uint32_t>& text = points[row];
        text.assign(shared + (random() % 2 == 0 ? long_ties : 0), common);
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
    std::int64_t real_tokens = 0;
    std::int64_t padding_tokens = 0;
    for (const std::int64_t length : at.lengths) {
        real_tokens += at.real_tokens(length);
        padding_tokens += at.tokens(length) - at.real_tokens(length);
    }
    if (layout.counts.total_tokens() != real_tokens ||
        layout.counts.padding_tokens != padding_tokens) {
        fail(at, "the number of tokens differs");
    }
    Rows tokens(expected.size());
    batch_tokens(layout, tokens);
    Rows all_sizes;
    for (std::size_t batch = 0; batch < expected.size(); ++batch) {
        Rows sizes;
        for (const std::int64_t row : expected[batch]) {
            sizes.push_back(at.tokens(at.lengths[static_cast<std::size_t>(row)]));
        }
        const auto number = static_cast<std::int64_t>(batch);
        if (tokens[batch] != std::reduce(sizes.begin(), sizes.end()) ||
            tokens_of_batches(layout, number, number + 1) != sizes) {
            fail(at, "the tokens of a batch differ");
        }
        all_sizes.insert(all_sizes.end(), sizes.begin(), sizes.end());
    }
    if (tokens_of_batches(layout, 0, layout.num_batches) != all_sizes) {
        fail(at, "the tokens of all batches differ");
    }
    TokenCounts pairs = layout.counts;
    pairs.tokens = all_sizes;
    std::ranges::shuffle(pairs.tokens, random);
    pairs.sequences.assign(all_sizes.size(), 1);
    if (from_pairs(pairs) != layout.counts) {
        fail(at, "counts of single sequences differ");
    }
    check_places(at, layout, expected, random);
    check_shuffled(at, layout, random);
    check_ids(at, layout, random);
    check_patterns(at, layout, random);
    check_reservation(at, layout.counts, random);
    check_placement(at, random);
}

Case random_case(std::mt19937_64& random, std::uint64_t in_parts) {
    const auto below = [&](std::int64_t end) {
        return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
    };
    Case at;
    at.limits.special_tokens = below(3);
    const std::int64_t scales[] = {12, 100, 5000, std::int64_t{1} << 50};
    const std::int64_t multiples[] = {1, 1, 8, 2 + below(20)};
    at.limits.multiple_of = multiples[below(4)];
    at.limits.max_tokens_per_batch =
        ceil_divide(at.limits.special_tokens + 1, at.limits.multiple_of) * at.limits.multiple_of +
        below(scales[below(4)]);
    const std::int64_t room = at.room();
    at.limits.max_sequence_length = below(2) == 0 ? room + below(2) * below(1000) : 1 + below(1100);
    at.limits.max_sequences_per_batch = below(3) == 0 ? 1 + below(6) : unlimited;
    const int threads[] = {1, 2, 7};
    at.threads.max = threads[below(3)];
    if (random() % in_parts == 0) {
        at.threads.min_part = 1;
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
