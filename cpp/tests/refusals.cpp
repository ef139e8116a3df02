#include "tests/refusals.hpp"

#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"
#include "packing/placement.hpp"
#include "packing/pricing.hpp"
#include "packing/reservation.hpp"

namespace packing {

void check_errors() {
    using Invalid = std::invalid_argument;
    const Limits narrow{12, 10, 2};
    const auto count_of = [narrow](std::vector<std::int32_t> lengths) {
        return count(std::span<const std::int32_t>(lengths), narrow, 1);
    };
    expect_error<Invalid>("lengths[2] is negative (got -7)", [&] { count_of({1, 2, -7, -8}); });
    expect_error<Invalid>("out of range",
                          [&] { count(std::span<const std::int32_t>(), Limits{12, 0, 2}, 1); });
    const TokenCounts one = count_of({1});
    for (const TokenCounts& other :
         {count_of({2}), count(std::span<const std::int32_t>(), Limits{13, 11, 2}, 1)}) {
        if (one == other) {
            fail({}, "different counts are equal");
        }
    }
    for (const int num_threads : {1, 2}) {
        expect_error<std::overflow_error>("truncated residues", [&] {
            // 2^63 are cut off each: 2^64 together, which wrap to nothing.
            const std::vector<std::uint64_t> lengths(2, (std::uint64_t{1} << 63) + 10);
            count(std::span<const std::uint64_t>(lengths), narrow, {num_threads, 1});
        });
    }
    expect_error<std::overflow_error>("number of tokens", [] {
        const Rows lengths(3, max_tokens);
        first_fit_decreasing(count(std::span<const std::int64_t>(lengths), Limits{}, 1));
    });
    expect_error<std::overflow_error>("truncated residues", [&] {
        const std::vector<std::uint64_t> lengths(2, (std::uint64_t{1} << 62) + 10);
        count(std::span<const std::uint64_t>(lengths), narrow, 1);
    });
    for (const Limits& limits :
         {Limits{11, 10, 2}, Limits{13, 11, 2}, Limits{12, 10, 1}, Limits{12, 10, 2, 9, 3}}) {
        expect_error<Invalid>("different limits", [&] { with_limits(count_of({1}), limits); });
        expect_error<Invalid>("different limits", [&] {
            add(count_of({1}), count(std::span<const std::int32_t>(), limits, 1));
        });
    }
    expect_error<Invalid>("out of range", [&] { with_limits(count_of({1}), {12, 10, 2, 0}); });
    if (with_limits(count_of({1}), {50, 10, 2, 3}).limits != Limits{50, 10, 2, 3}) {
        fail({}, "counts do not have the limits that they were given");
    }
    // Each of 2^61 + 1 tokens takes 2^61 + 2^60.
    const Limits coarse{max_tokens, unlimited, 0, unlimited, std::int64_t{1} << 60};
    expect_error<std::overflow_error>("padding tokens", [&] {
        const Rows lengths(9, (std::int64_t{1} << 61) + 1);
        count(std::span<const std::int64_t>(lengths), coarse, 1);
    });
    const Layout layout = first_fit_decreasing(count_of({1, 1, 5}));
    for (const auto& [first, last] : {std::pair{-1, 0}, {1, 0}, {0, 3}}) {
        expect_error<Invalid>("does not have batches", [&, first = first, last = last] {
            tokens_of_batches(layout, first, last);
        });
    }
    const auto assign_to = [&](std::vector<std::int32_t> lengths, const TokenCounts& before) {
        Rows out(lengths.size());
        assign(layout, std::span<const std::int32_t>(lengths), before, Place::batch, std::span(out),
               1);
    };
    expect_error<Invalid>("3 sequences of 3 tokens (the layout has 2",
                          [&] { assign_to({1, 1, 1}, count_of({})); });
    expect_error<Invalid>("that the layout does not have",
                          [&] { assign_to({1, 4}, count_of({})); });
    expect_error<Invalid>("that the layout does not have",
                          [&] { assign_to({1, 9}, count_of({})); });
    expect_error<Invalid>("`before` has more", [&] { assign_to({1}, count_of({4})); });
    expect_error<Invalid>("`before` and the layout were made", [&] {
        assign_to({1}, count(std::span<const std::int32_t>(), Limits{13, 11, 2}, 1));
    });
    const auto list_of = [&](std::vector<std::int32_t> lengths, const Ids& ids) {
        Rows out(lengths.size());
        Rows scratch(lengths.size());
        Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
        list_rows(layout, std::span<const std::int32_t>(lengths), ids, std::span(scratch),
                  std::span(out), std::span(offsets), 1);
    };
    expect_error<Invalid>("1 sequences of 3 tokens (the layout has 2",
                          [&] { list_of({1, 5}, Ids{}); });
    const Rows ids(2);
    expect_error<Invalid>("ids and rows differ",
                          [&] { list_of({1, 1, 5}, std::span<const std::int64_t>(ids)); });
    const std::vector<std::int8_t> many(200);
    const Layout wide =
        first_fit_decreasing(count(std::span<const std::int8_t>(many), Limits{10, 10}, 1));
    Rows offsets(2);
    Rows room(200);
    expect_error<Invalid>("a buffer has the wrong size", [&] {
        list_rows(wide, std::span<const std::int8_t>(many), Ids{}, std::span(room).first(199),
                  std::span(room), std::span(offsets), 1);
    });
    expect_error<Invalid>("a buffer has the wrong size", [&] {
        assign(wide, std::span<const std::int8_t>(many), wide.counts, Place::slot,
               std::span(room).first(199), 1);
    });
    expect_error<Invalid>("a buffer has the wrong size", [&] {
        shuffle_rows(wide, std::span<const std::int64_t>(room).first(199), 1, std::span(room),
                     std::span(room), 1);
    });
}

// What is refused of parameters, of counts before the rows, and of buffers.
void check_more_errors() {
    using Invalid = std::invalid_argument;
    const std::vector<std::int8_t> lengths{1, 1, 5};
    const std::span<const std::int8_t> all(lengths);
    const Limits limits{12, 10, 2};
    const Limits other{13, 10, 3};
    for (const Limits& bad :
         {Limits{12, 10, -1}, Limits{2, 10, 2}, Limits{0, 10}, Limits{12, 0, 2},
          Limits{max_tokens + 1, 10}, Limits{12, 10, 2, 0}, Limits{12, 10, 2, 1, 0},
          Limits{12, 10, 2, 1, -8}, Limits{12, 10, 2, 1, 13}, Limits{12, 10, 8, 1, 8}}) {
        expect_error<Invalid>("out of range", [&] { count(all, bad, 1); });
    }
    const TokenCounts counts = count(all, limits, 1);
    expect_error<Invalid>("different limits", [&] { add(counts, count(all, other, 1)); });
    const Layout layout = first_fit_decreasing(counts);
    Rows out(3);
    const auto assign_after = [&](const TokenCounts& before) {
        assign(layout, all.first(0), before, Place::slot, std::span(out).first(0), 1);
    };
    expect_error<Invalid>("`before` and the layout were made",
                          [&] { assign_after(count(all, other, 1)); });
    expect_error<Invalid>("`before` has more sequences of 7 tokens",
                          [&] { assign_after(add(counts, counts)); });
    const std::vector<std::int8_t> shorter{0};
    expect_error<Invalid>("`before` has more sequences of 2 tokens", [&] {
        assign_after(count(std::span<const std::int8_t>(shorter), limits, 1));
    });
    // Far from each other, so that the first of them is in another block or part.
    std::vector<std::int8_t> many(20'000, 1);
    many[3] = -5;
    expect_error<Invalid>("lengths[3] is negative (got -5)",
                          [&] { count(std::span<const std::int8_t>(many), limits, 2); });
    expect_error<std::overflow_error>("too narrow", [] {
        TokenCounts trillions;
        trillions.tokens.push_back(1);
        trillions.sequences.push_back(std::int64_t{1} << 40);
        trillions.limits.max_tokens_per_batch = 1000;
        assign(first_fit_decreasing(trillions), std::span<const std::int8_t>(), TokenCounts{},
               Place::slot, std::span<std::int32_t>(), 1);
    });
    expect_error<std::overflow_error>("too narrow", [&] {
        // Refused before anything is read, of which there is not so much.
        const std::size_t size = std::size_t{1} << 31;
        std::int32_t row = 0;
        Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
        list_rows(layout, std::span(lengths.data(), size), Ids{}, std::span(&row, size),
                  std::span(&row, size), std::span(offsets), 1);
    });
    expect_error<Invalid>("a buffer has the wrong size", [&] {
        Rows room(3);
        Rows offsets(static_cast<std::size_t>(layout.num_batches) + 2);
        list_rows(layout, all, Ids{}, std::span(room), std::span(out), std::span(offsets), 1);
    });
    // Sizes too far apart for a table.
    const std::vector<std::int64_t> far{std::int64_t{1} << 40, 5};
    const Layout sparse =
        first_fit_decreasing(count(std::span<const std::int64_t>(far), Limits{}, 1));
    for (const std::int64_t length : {4, 6}) {
        expect_error<Invalid>("that the layout does not have", [&] {
            assign(sparse, std::span(&length, 1), count(all.first(0), Limits{}, 1), Place::batch,
                   std::span(out).first(1), 1);
        });
    }
    Rows rows{0, 1, 2};
    const std::span<const std::int64_t> from(rows);
    for (const auto& [scratch, to] : {std::pair{2, 3}, {3, 2}}) {
        Rows room(3);
        expect_error<Invalid>("a buffer has the wrong size", [&, scratch = scratch, to = to] {
            shuffle_rows(layout, from, 1, std::span(room).first(static_cast<std::size_t>(scratch)),
                         std::span(out).first(static_cast<std::size_t>(to)), 1);
        });
        expect_error<Invalid>("a buffer has the wrong size", [&, scratch = scratch, to = to] {
            Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
            list_rows(layout, all, Ids{}, std::span(room).first(static_cast<std::size_t>(scratch)),
                      std::span(out).first(static_cast<std::size_t>(to)), std::span(offsets), 1);
        });
    }
    TokenCounts bad = counts;
    bad.limits.max_tokens_per_batch = -1;
    expect_error<Invalid>("out of range", [&] { price_patterns(bad, Rows{1, 1}, 0, 1); });
    expect_error<Invalid>("one number of sequences per size", [&] { subset(counts, Rows{1}); });
    for (const Rows& some : {Rows{2, 1}, Rows{1, -1}}) {
        expect_error<Invalid>("fewer sequences of a size than requested",
                              [&] { subset(counts, some); });
    }
    if (subset(counts, Rows{0, 2}) != count(all.first(2), limits, 1)) {
        fail({}, "counts of some of the sequences are wrong");
    }
    TokenCounts tight = counts;
    tight.tokens.front() = 11;
    tight.limits.max_tokens_per_batch = 6;
    for (const std::int64_t most : {std::int64_t{2}, std::int64_t{1}}) {
        tight.limits.max_sequences_per_batch = most;
        if (price_patterns(tight, Rows{9, 1}, 0, 1).best_value != most) {
            fail({}, "a sequence is worth something although there is not any room for it");
        }
    }
    if (price_patterns(TokenCounts{}, Rows{}, 0, 1).best_value != 0) {
        fail({}, "a batch of nothing is worth something");
    }
}

// Counts and layouts with one field changed are refused, with the reason.
void check_forgeries() {
    const std::vector<std::int32_t> lengths{9, 5, 5, 4, 1, 1, 1, 12};
    const Layout honest = first_fit_decreasing(
        count(std::span<const std::int32_t>(lengths), Limits{12, 10, 0, 3}, 1));
    honest.validate();
    struct Forgery {
        const char* reason;
        std::function<void(Layout&)> forge;
    };
    const std::vector<Forgery> forgeries{
        {"out of range", [](Layout& l) { l.counts.limits.max_sequence_length = 0; }},
        {"out of range", [](Layout& l) { l.counts.limits.special_tokens = -1; }},
        {"out of range", [](Layout& l) { l.counts.limits.special_tokens = max_tokens; }},
        {"out of range", [](Layout& l) { l.counts.limits.max_tokens_per_batch = -1; }},
        {"out of range", [](Layout& l) { l.counts.limits.max_tokens_per_batch = max_tokens + 1; }},
        {"out of range", [](Layout& l) { l.counts.limits.max_sequences_per_batch = 0; }},
        {"a size is out of range", [](Layout& l) { l.counts.limits.max_tokens_per_batch = 9; }},
        {"differ in length", [](Layout& l) { l.counts.sequences.push_back(1); }},
        {"sizes are not in decreasing order",
         [](Layout& l) { l.counts.tokens[1] = l.counts.tokens[0]; }},
        {"a size is out of range", [](Layout& l) { l.counts.tokens[0] = 11; }},
        {"a size is out of range", [](Layout& l) { l.counts.tokens.back() = -1; }},
        {"a count is not positive", [](Layout& l) { l.counts.sequences[0] = 0; }},
        {"residues are inconsistent", [](Layout& l) { l.counts.num_truncated = -1; }},
        {"residues are inconsistent", [](Layout& l) { l.counts.truncated_residues = 0; }},
        {"residues are inconsistent", [](Layout& l) { l.counts.num_truncated = 0; }},
        {"more sequences are truncated",
         [](Layout& l) { l.counts.num_truncated = l.counts.truncated_residues = 2; }},
        {"more sequences are truncated",
         [](Layout& l) { l.counts.limits.max_sequence_length = 11; }},
        {"runs do not match sizes", [](Layout& l) { l.first_run.pop_back(); }},
        {"runs do not match sizes", [](Layout& l) { l.first_run.front() = 1; }},
        {"runs do not match sizes", [](Layout& l) { l.first_run[1] = 99; }},
        {"runs do not match sizes", [](Layout& l) { l.runs.pop_back(); }},
        {"a batch is empty", [](Layout& l) { l.num_batches = -1; }},
        {"a batch is empty", [](Layout& l) { l.num_batches = 9; }},
        {"a batch is empty", [](Layout& l) { ++l.num_batches; }},
        {"the proven bound is out of range", [](Layout& l) { l.proven_bound = l.num_batches + 1; }},
        {"the proven bound is out of range", [](Layout& l) { l.proven_bound = -1; }},
        {"a run is empty", [](Layout& l) { l.runs[0].num_batches = 0; }},
        {"a run is empty", [](Layout& l) { l.runs[0].per_batch = 0; }},
        {"a sequence is missing", [](Layout& l) { l.runs[0].first_sequence = 1; }},
        {"a sequence is missing",
         [](Layout& l) {
             l.runs.pop_back();
             --l.first_run.back();
         }},
        {"a run is out of place", [](Layout& l) { l.runs[0].first_batch = -1; }},
        {"a run is out of place", [](Layout& l) { l.runs[0].first_batch = l.num_batches; }},
        {"a run is out of place", [](Layout& l) { l.runs[0].num_batches = l.num_batches + 1; }},
        {"a sequence has two slots", [](Layout& l) { l.runs[0].per_batch = 2; }},
        {"a slot is out of place", [](Layout& l) { ++l.runs[0].first_slot; }},
        {"too many sequences", [](Layout& l) { l.counts.limits.max_sequences_per_batch = 2; }},
        {"too many tokens", [](Layout& l) { l.counts.limits.max_tokens_per_batch = 10; }}};
    for (const Forgery& forgery : forgeries) {
        Layout forged = honest;
        forgery.forge(forged);
        expect_error<std::invalid_argument>(forgery.reason, [&] { forged.validate(); });
    }

    // Three sequences of 16 tokens with 2 to 7 of padding, one of which was truncated and has 2,
    // and one of 8 tokens with up to 6.
    const std::vector<std::int32_t> rounded{14, 9, 12, 3};
    const Layout padded = first_fit_decreasing(
        count(std::span<const std::int32_t>(rounded), Limits{25, 12, 2, 3, 8}, 1));
    const auto with_padding = [&](std::int64_t padding_tokens) {
        Layout layout = padded;
        layout.counts.padding_tokens = padding_tokens;
        layout.validate();
    };
    const char* const reason = "padding tokens is out of range";
    with_padding(3 * 2 + 0);
    with_padding(2 + 2 * 7 + 6);
    expect_error<std::invalid_argument>(reason, [&] { with_padding(3 * 2 - 1); });
    expect_error<std::invalid_argument>(reason, [&] { with_padding(2 + 2 * 7 + 6 + 1); });
    expect_error<std::invalid_argument>("padding tokens is negative", [&] { with_padding(-1); });
    expect_error<std::invalid_argument>("not a multiple", [&] {
        Layout layout = padded;
        layout.counts.tokens[1] = 9;
        layout.validate();
    });
}

void check_bad_patterns() {
    const std::vector<std::int32_t> lengths{6, 4, 4};
    const TokenCounts counts =
        count(std::span<const std::int32_t>(lengths), Limits{10, 10, 0, 2}, 1);
    const auto expect = [&](const char* reason, const std::vector<Pattern>& patterns,
                            const Rows& num_batches) {
        expect_error<std::invalid_argument>(
            reason, [&] { layout_from_patterns(counts, patterns, num_batches); });
    };
    expect("invalid patterns: there must be one number of batches", {{{0, 1}}}, {1, 1});
    expect("invalid patterns: a pattern is empty", {{}}, {1});
    expect("invalid patterns: a pattern is empty", {{{0, 1}}}, {0});
    expect("invalid patterns: sizes are out of order", {{{1, 1}, {0, 1}}}, {1});
    expect("invalid patterns: sizes are out of order", {{{1, 1}, {1, 1}}}, {1});
    expect("invalid patterns: sizes are out of order", {{{2, 1}}}, {1});
    expect("invalid patterns: sizes are out of order", {{{0, 0}}}, {1});
    expect("invalid patterns: there are fewer sequences", {{{0, 2}}}, {1});
    expect("invalid patterns: there are fewer sequences", {{{1, 1}}}, {3});
    expect("invalid patterns: a batch has too many sequences", {{{0, 1}, {1, 2}}}, {1});
    expect_error<std::invalid_argument>("invalid patterns: a batch has too many tokens", [&] {
        layout_from_patterns(with_limits(counts, Limits{10, 10, 0, 3}),
                             std::vector<Pattern>{{{0, 1}, {1, 2}}}, Rows{1});
    });
    const Layout layout = first_fit_decreasing(counts);
    for (const std::int64_t bound : {layout.num_batches + 1, std::int64_t{-1}}) {
        expect_error<std::invalid_argument>("bound exceeds", [&] { with_bound(layout, bound); });
    }
    // First-Fit Decreasing needs three batches; the bound from the tokens is two.
    const std::vector<std::int32_t> loose{5, 5, 4, 4, 3, 3};
    const Layout three =
        first_fit_decreasing(count(std::span<const std::int32_t>(loose), Limits{12, 12}, 1));
    if (lower_bound(three) != 2 || lower_bound(with_bound(three, 3)) != 3) {
        fail({}, "a layout does not have the bound that it was given");
    }
}

void check_bad_coarse_patterns() {
    const std::vector<std::int32_t> lengths{6, 4, 4};
    const TokenCounts counts =
        count(std::span<const std::int32_t>(lengths), Limits{10, 10, 0, 2}, 1);
    for (const auto& [unit, max_sizes] :
         {std::pair<std::int64_t, std::size_t>{0, 1}, {-1, 1}, {11, 1}, {1, 0}}) {
        expect_error<std::invalid_argument>("is out of range",
                                            [&, unit = unit, max_sizes = max_sizes] {
                                                coarsen(counts, unit, max_sizes, Rounding::down);
                                            });
    }
    const auto expect = [&](const std::vector<std::size_t>& first_size,
                            const std::vector<Pattern>& patterns, const Rows& num_batches) {
        expect_error<std::invalid_argument>("the coarse patterns are invalid", [&] {
            refine(counts, first_size, patterns, num_batches);
        });
    };
    expect({}, {}, {});
    for (const std::vector<std::size_t>& wrong :
         {std::vector<std::size_t>{0}, {1, 2}, {0, 1}, {0, 3}, {0, 2, 1, 2}}) {
        expect(wrong, {}, {});
    }
    expect({0, 2}, {{{0, 1}}}, {});
    expect({0, 2}, {{{0, 1}}}, {0});
    expect({0, 2}, {{{0, 0}}}, {1});
    expect({0, 2}, {{{1, 1}}}, {1});
    expect({0, 1, 2}, {{{1, 1}, {0, 1}}}, {1});
    expect({0, 1, 2}, {{{1, 1}, {1, 1}}}, {1});
    // Both sizes are joined: 6 and 4, then 4 in a batch that has room for two.
    const Refined refined = refine(counts, std::vector<std::size_t>{0, 2},
                                   std::vector<Pattern>{{{0, 3}}}, Rows{unlimited});
    if (refined.patterns != std::vector<Pattern>{{{0, 1}, {1, 1}}, {{1, 1}}} ||
        refined.num_batches != Rows{1, 1} || refined.remaining != Rows{0, 0}) {
        fail({}, "patterns of joint sizes are filled wrongly");
    }
    // Sums and numbers close to the largest.
    const std::int64_t huge = std::int64_t{1} << 61;
    TokenCounts many;
    many.limits = {10, 10, 0, 3};
    many.tokens = {4, 1, 0};
    many.sequences = {huge / 4, huge, huge};
    TokenCounts few = many;
    few.sequences = {1, 4, 4};
    const auto [patterns, numbers] = patterns_of(patterns_with_reservation(many));
    const auto [few_patterns, few_numbers] = patterns_of(patterns_with_reservation(few));
    if (std::reduce(numbers.begin(), numbers.end()) !=
        huge / 4 * std::reduce(few_numbers.begin(), few_numbers.end())) {
        fail({}, "many sequences with reservation need another number of batches than few");
    }
    many.sequences[0] = std::numeric_limits<std::int64_t>::max() / 4;
    expect_error<std::overflow_error>("number of tokens", [&] { patterns_with_reservation(many); });
}

void check_bad_placement() {
    const Limits limits{10, 10, 0, 2};
    const auto expect = [&](const char* reason, const std::vector<Fill>& open, const Rows& sizes) {
        expect_error<std::invalid_argument>(reason, [&] { place(open, sizes, limits); });
    };
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{11}, max_tokens + 1}) {
        expect("a size is out of range", {}, {1, wrong});
        expect("an open batch is out of range", {{1, 1}, {wrong, 1}}, {});
    }
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{3}, unlimited}) {
        expect("an open batch is out of range", {{1, wrong}}, {});
    }
    expect_error<std::invalid_argument>("no room for one residue",
                                        [] { place({}, {}, Limits{10, 10, 10}); });
    if (place(std::vector<Fill>{{10, 1}, {0, 2}, {10, 2}}, Rows{0, 0, 10}, limits) !=
        Rows{0, 3, 3}) {
        fail({}, "full batches are used wrongly");
    }
    const Limits large{max_tokens, max_tokens};
    if (place(std::vector<Fill>{{max_tokens - 1, unlimited - 1}}, Rows{1, max_tokens, 0, 1},
              large) != Rows{0, 1, 1, 2}) {
        fail({}, "the largest sizes are placed wrongly");
    }
}

}  // namespace packing
