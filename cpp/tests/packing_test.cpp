// Compares the kernel with the obvious algorithm on random cases.
// Usage: packing_test [CASES [SEED]]

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "packing/assign.hpp"
#include "packing/checked.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"

using namespace packing;
using Rows = std::vector<std::int64_t>;

namespace {

struct Case {
    std::int64_t budget = 1;
    std::int64_t max_length = 1;
    std::int64_t special_tokens = 0;
    std::int64_t max_sequences = unlimited;
    int num_threads = 1;
    Rows lengths;

    std::int64_t tokens(std::int64_t length) const {
        return std::min(length, max_length) + special_tokens;
    }
};

[[noreturn]] void fail(const Case& at, const std::string& what) {
    std::printf(
        "FAILED: %s\nbudget %lld, max_length %lld, special_tokens %lld, max_sequences %lld, "
        "%d threads, %zu lengths:",
        what.c_str(), static_cast<long long>(at.budget), static_cast<long long>(at.max_length),
        static_cast<long long>(at.special_tokens), static_cast<long long>(at.max_sequences),
        at.num_threads, at.lengths.size());
    for (const std::int64_t length : at.lengths) {
        std::printf(" %lld", static_cast<long long>(length));
    }
    std::printf("\n");
    std::exit(1);
}

// First-Fit Decreasing as it is defined, the rows taken in a given order.
std::vector<Rows> pack_naively(const Case& at, const Rows& order) {
    std::vector<Rows> batches;
    std::vector<std::int64_t> free;
    for (const std::int64_t row : order) {
        const std::int64_t tokens = at.tokens(at.lengths[static_cast<std::size_t>(row)]);
        std::size_t batch = 0;
        while (batch < batches.size() &&
               (free[batch] < tokens ||
                static_cast<std::int64_t>(batches[batch].size()) >= at.max_sequences)) {
            ++batch;
        }
        if (batch == batches.size()) {
            batches.emplace_back();
            free.push_back(at.budget);
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

Layout lay_out(const Case& at) {
    return first_fit_decreasing(count(std::span<const std::int64_t>(at.lengths), at.max_length,
                                      at.special_tokens, at.num_threads),
                                at.budget, at.max_sequences);
}

std::vector<Rows> list(const Case& at, const Layout& layout, const Ids& ids) {
    std::vector<std::int32_t> rows(at.lengths.size());
    std::vector<std::int32_t> scratch(at.lengths.size());
    Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
    list_rows(layout, std::span<const std::int64_t>(at.lengths), ids, std::span(scratch),
              std::span(rows), std::span(offsets), at.num_threads);
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
    const TokenCounts first =
        count(lengths.first(cut), at.max_length, at.special_tokens, at.num_threads);
    const TokenCounts rest =
        count(lengths.subspan(cut), at.max_length, at.special_tokens, at.num_threads);
    if (add(first, rest) != layout.counts) {
        fail(at, "counts of pieces differ from counts of the whole");
    }
    TokenCounts none = layout.counts;
    none.tokens.clear();
    none.sequences.clear();
    for (const Place place : {Place::batch, Place::slot}) {
        std::vector<std::int32_t> out(lengths.size());
        const std::span all(out);
        assign(layout, lengths.first(cut), none, place, all.first(cut), at.num_threads);
        assign(layout, lengths.subspan(cut), first, place, all.subspan(cut), at.num_threads);
        if (!std::ranges::equal(out, place == Place::batch ? batch_of : slot_of)) {
            fail(at, place == Place::batch ? "batches of rows differ" : "slots of rows differ");
        }
    }
    if (std::ranges::all_of(at.lengths, [](std::int64_t length) { return length < 128; })) {
        Rows out(lengths.size());
        const std::vector<std::int8_t> narrow = narrowed<std::int8_t>(at);
        assign(layout, std::span<const std::int8_t>(narrow), none, Place::batch, std::span(out),
               at.num_threads);
        if (out != batch_of) {
            fail(at, "batches of narrow lengths differ");
        }
    }
}

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
    shuffle_rows(layout, from, seed, std::span(scratch), std::span(shuffled), at.num_threads);
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
    const std::size_t shared = random() % 20;
    std::vector<std::vector<std::uint32_t>> points(num_rows);
    std::vector<std::vector<std::uint8_t>> bytes(num_rows);
    std::vector<std::vector<std::uint16_t>> pairs(num_rows);
    std::vector<Text> texts;
    for (std::size_t row = 0; row < num_rows; ++row) {
        std::vector<std::uint32_t>& text = points[row];
        text.assign(shared, most);
        for (std::size_t length = random() % 14; length > 0; --length) {
            const std::uint32_t point = static_cast<std::uint32_t>(random());
            text.push_back(random() % 2 == 0    ? most
                           : most == 0xffffffff ? point
                                                : point % (most + 1));
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
    const std::int64_t bound = lower_bound(layout);
    const std::int64_t least =
        std::max(ceil_divide(layout.counts.total_tokens(), at.budget),
                 ceil_divide(layout.counts.num_sequences(), at.max_sequences));
    if (bound < least || bound > layout.num_batches) {
        fail(at, "the lower bound is out of range");
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
}

Case random_case(std::mt19937_64& random) {
    const auto below = [&](std::int64_t end) {
        return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
    };
    Case at;
    at.special_tokens = below(3);
    const std::int64_t scales[] = {12, 100, 5000, std::int64_t{1} << 50};
    at.budget = at.special_tokens + 1 + below(scales[below(4)]);
    const std::int64_t room = at.budget - at.special_tokens;
    at.max_length = below(2) == 0 ? room : std::min(room, 1 + below(1100));
    at.max_sequences = below(3) == 0 ? 1 + below(6) : unlimited;
    const int threads[] = {1, 2, 7};
    at.num_threads = threads[below(3)];
    at.lengths.resize(static_cast<std::size_t>(below(below(20) == 0 ? 400 : 40)));
    const std::int64_t kind = below(5);
    for (std::int64_t& length : at.lengths) {
        switch (kind) {
            case 0:
                length = below(3);
                break;
            case 1:
                length = below(at.max_length + 4);
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

// More rows than a thread handles alone, checked against one thread and by summing up.
void check_threads() {
    std::mt19937_64 random(1);
    std::lognormal_distribution<double> log_normal(5.6, 0.75);
    Case at;
    at.budget = 4096;
    at.max_length = 1022;
    at.special_tokens = 2;
    at.lengths.resize(500'000);
    for (std::int64_t& length : at.lengths) {
        length = static_cast<std::int64_t>(log_normal(random));
    }
    const Layout layout = lay_out(at);
    layout.validate();
    const std::vector<Rows> expected = list(at, layout, Ids{});
    for (const int num_threads : {2, 3, 7}) {
        at.num_threads = num_threads;
        if (lay_out(at) != layout || list(at, layout, Ids{}) != expected) {
            fail(at, "threads change the result");
        }
        check_places(at, layout, expected, random);
    }
}

template <class Error>
void expect_error(const char* what, const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        if (std::string(error.what()).find(what) != std::string::npos) {
            return;
        }
        fail({}, std::string("expected \"") + what + "\", got \"" + error.what() + "\"");
    }
    fail({}, std::string("no error: ") + what);
}

void check_errors() {
    using Invalid = std::invalid_argument;
    const auto count_of = [](std::vector<std::int32_t> lengths) {
        return count(std::span<const std::int32_t>(lengths), 10, 2, 1);
    };
    expect_error<Invalid>("lengths[2] is negative (got -7)", [&] { count_of({1, 2, -7, -8}); });
    expect_error<Invalid>("out of range", [&] { count(std::span<const std::int32_t>(), 0, 2, 1); });
    expect_error<std::overflow_error>("residues cut off", [] {
        // 2^63 are cut off each: 2^64 together, which wrap to nothing.
        const std::vector<std::uint64_t> lengths(2, (std::uint64_t{1} << 63) + 10);
        count(std::span<const std::uint64_t>(lengths), 10, 2, 1);
    });
    expect_error<std::overflow_error>("number of tokens", [] {
        const Rows lengths(3, most_tokens);
        first_fit_decreasing(count(std::span<const std::int64_t>(lengths), most_tokens, 0, 1),
                             most_tokens, unlimited);
    });
    expect_error<Invalid>("no room", [&] { first_fit_decreasing(count_of({1}), 11, unlimited); });
    expect_error<Invalid>("different limits", [&] {
        add(count_of({1}), count(std::span<const std::int32_t>(), 11, 2, 1));
    });
    const Layout layout = first_fit_decreasing(count_of({1, 1, 5}), 12, unlimited);
    const auto assign_to = [&](std::vector<std::int32_t> lengths, const TokenCounts& before) {
        Rows out(lengths.size());
        assign(layout, std::span<const std::int32_t>(lengths), before, Place::batch, std::span(out),
               1);
    };
    expect_error<Invalid>("3 sequences of 3 tokens, the layout has 2",
                          [&] { assign_to({1, 1, 1}, count_of({})); });
    expect_error<Invalid>("that the layout lacks", [&] { assign_to({1, 4}, count_of({})); });
    expect_error<Invalid>("that the layout lacks", [&] { assign_to({1, 9}, count_of({})); });
    expect_error<Invalid>("`before` has more", [&] { assign_to({1}, count_of({4})); });
    expect_error<Invalid>("`before` was counted with limits", [&] {
        assign_to({1}, count(std::span<const std::int32_t>(), 11, 2, 1));
    });
    const auto list_of = [&](std::vector<std::int32_t> lengths, const Ids& ids) {
        Rows out(lengths.size());
        Rows scratch(lengths.size());
        Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
        list_rows(layout, std::span<const std::int32_t>(lengths), ids, std::span(scratch),
                  std::span(out), std::span(offsets), 1);
    };
    expect_error<Invalid>("1 sequences of 3 tokens, the layout has 2",
                          [&] { list_of({1, 5}, Ids{}); });
    const Rows ids(2);
    expect_error<Invalid>("ids and rows differ",
                          [&] { list_of({1, 1, 5}, std::span<const std::int64_t>(ids)); });
}

}  // namespace

int main(int argc, char** argv) {
    const long long cases = argc > 1 ? std::atoll(argv[1]) : 20'000;
    const long long seed = argc > 2 ? std::atoll(argv[2]) : 0;
    check_errors();
    check_threads();
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    for (long long i = 0; i < cases; ++i) {
        check(random_case(random), random);
    }
    std::printf("%lld cases equal the reference\n", cases);
}
