// Pairs of sizes and numbers of sequences, and places of sequences by their rank.

#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "packing/ranks.hpp"
#include "tests/refusals.hpp"

namespace packing {

namespace {

// Ten sequences of 7 tokens, two to a batch, and three of 6, one to each of the first batches.
Layout make_layout() {
    TokenCounts pairs;
    pairs.limits = {20, 18, 2};
    pairs.tokens = {6, 7, 7, 6};
    pairs.sequences = {1, 4, 6, 2};
    return first_fit_decreasing(from_pairs(pairs));
}

void check_pairs() {
    using Invalid = std::invalid_argument;
    const auto expect = [](const char* reason, Rows tokens, Rows sequences, Limits limits) {
        expect_error<Invalid>(reason, [&] {
            TokenCounts pairs;
            pairs.limits = limits;
            pairs.tokens = std::move(tokens);
            pairs.sequences = std::move(sequences);
            from_pairs(pairs);
        });
    };
    const Limits limits{20, 10, 2};
    expect("one number of sequences per size", {5}, {1, 1}, limits);
    expect("tokens[1] must be from 2 to 12 (got 1)", {5, 1}, {1, 1}, limits);
    expect("tokens[0] must be from 2 to 12 (got 13)", {13, 1}, {1, 1}, limits);
    expect("tokens[0] must be from 2 to 12 (got -5)", {-5}, {1}, limits);
    expect("sequences[1] must be at least 1 (got 0)", {5, 5}, {3, 0}, limits);
    expect("sequences[0] must be at least 1 (got -4)", {5, 5}, {-4, 1}, limits);
    expect("tokens[1] must be a multiple of 8 (got 12)", {8, 12}, {1, 1}, {20, 18, 2, 9, 8});
    expect("out of range", {5}, {1}, {20, 0, 2});
    // Their padding is at least 6 tokens each.
    expect("padding tokens is out of range", {16}, {2}, {20, 8, 2, 9, 8});
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    TokenCounts pairs;
    pairs.tokens = {1, 1};
    pairs.sequences = {most - 5, 5};
    if (from_pairs(pairs).sequences != Rows{most} || from_pairs({}) != TokenCounts{}) {
        fail({}, "the counts of pairs are wrong");
    }
    pairs.sequences = {most - 5, 6};
    expect_error<std::overflow_error>("number of sequences", [&] { from_pairs(pairs); });
    pairs.tokens = {0, 1};
    expect_error<std::overflow_error>("number of sequences", [&] { from_pairs(pairs); });
    pairs.tokens = {2, 1};
    pairs.sequences = {most / 2, 2};
    expect_error<std::overflow_error>("number of tokens", [&] { from_pairs(pairs); });
    pairs.num_truncated = pairs.truncated_residues = 1;
    expect_error<Invalid>("more sequences are truncated", [&] { from_pairs(pairs); });
}

void check_ranks() {
    using Invalid = std::invalid_argument;
    const Layout layout = make_layout();
    const auto expect = [&](const char* reason, const Rows& tokens, const Rows& ranks,
                            Threads threads) {
        Rows batches(tokens.size());
        Rows slots(tokens.size());
        expect_error<Invalid>(reason, [&] {
            place_ranks(layout, std::span<const std::int64_t>(tokens),
                        std::span<const std::int64_t>(ranks), std::span(batches), std::span(slots),
                        threads);
        });
    };
    for (const int num_threads : {1, 3}) {
        const Threads threads(num_threads, 1);
        for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{5},
                                         std::int64_t{8}, max_tokens, unlimited}) {
            const std::string got = "tokens[1] is a size that the layout does not have (got " +
                                    std::to_string(wrong) + ")";
            expect(got.c_str(), {7, wrong, 7, -9}, {0, 0, 0, 0}, threads);
        }
        expect("rank[2] must be from 0 to 9 for sequences of 7 tokens (got 10)", {6, 6, 7, 7},
               {0, 1, 10, 11}, threads);
        expect("rank[0] must be from 0 to 2 for sequences of 6 tokens (got -1)", {6, 6, 5},
               {-1, 1, 1}, threads);
    }
    Rows room(4);
    const std::span<const std::int64_t> in(room);
    const std::span<std::int64_t> out(room);
    for (int shorter = 0; shorter < 4; ++shorter) {
        const auto size = [&](int which) { return std::size_t{which == shorter ? 3U : 4U}; };
        expect_error<Invalid>("a buffer has the wrong size", [&] {
            place_ranks(layout, in.first(size(0)), in.first(size(1)), out.first(size(2)),
                        out.first(size(3)), 1);
        });
    }
    // Sizes too far apart for a table, and more sequences than 32 bits number.
    TokenCounts pairs;
    const std::int64_t many = std::int64_t{1} << 40;
    pairs.limits.max_tokens_per_batch = many + 3;
    pairs.tokens = {1, many};
    pairs.sequences = {std::int64_t{1} << 50, 5};
    const Layout sparse = first_fit_decreasing(from_pairs(pairs));
    const Rows tokens{1, many, 1, 1};
    const Rows ranks{15, 4, 14, pairs.sequences[0] - 1};
    Rows batches(4);
    Rows slots(4);
    place_ranks(sparse, std::span<const std::int64_t>(tokens), std::span<const std::int64_t>(ranks),
                std::span(batches), std::span(slots), 1);
    const std::int64_t last = pairs.sequences[0] - 1 - 15;
    if (batches != Rows{5, 4, 4, 5 + last / (many + 3)} ||
        slots != Rows{0, 0, 3, last % (many + 3)}) {
        fail({}, "places of trillions of sequences are wrong");
    }
    for (const std::int64_t wrong : {std::int64_t{0}, std::int64_t{2}, many - 1, many + 1}) {
        const Rows one{wrong};
        expect_error<Invalid>("a size that the layout does not have", [&] {
            place_ranks(sparse, std::span<const std::int64_t>(one), in.first(1), out.first(1),
                        out.first(1), 1);
        });
    }
    expect_error<std::overflow_error>("too narrow", [&] {
        place_ranks(sparse, in.first(0), in.first(0), std::span<std::int32_t>(),
                    std::span<std::int32_t>(), 1);
    });
    place_ranks(Layout{}, in.first(0), in.first(0), out.first(0), out.first(0), 1);
}

}  // namespace

void check_bad_pairs_and_ranks() {
    check_pairs();
    check_ranks();
}

}  // namespace packing
