// Lets every allocation of the kernel fail in turn: each ends in a clean std::bad_alloc that leaks
// nothing and writes nothing, or in the right result where the kernel can do without.
// Prints what failed, stage by stage.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "fasta/scanner.hpp"
#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"
#include "packing/placement.hpp"
#include "packing/pricing.hpp"
#include "packing/ranks.hpp"
#include "packing/reservation.hpp"
#include "tests/cases.hpp"

namespace {

std::atomic<std::int64_t> live = 0;           // allocations that were not freed
std::atomic<std::int64_t> made = 0;           // since the failures were set
std::atomic<std::int64_t> first_failing = 0;  // of those made; 0 for none
std::atomic<std::int64_t> last_failing = 0;
std::atomic<bool> by_worker = false;  // a thread that the kernel started has allocated
std::thread::id main_thread;

}  // namespace

void* operator new(std::size_t size) {
    const std::int64_t number = ++made;
    if (std::this_thread::get_id() != main_thread) {
        by_worker = true;
    }
    if (first_failing > 0 && number >= first_failing && number <= last_failing) {
        throw std::bad_alloc();
    }
    void* const memory = std::malloc(size);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    ++live;
    return memory;
}

// Sanitizers have one of their own, which would not call the one above.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
    try {
        return operator new(size);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void operator delete(void* memory) noexcept {
    if (memory != nullptr) {
        --live;
        std::free(memory);
    }
}

void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { operator delete(memory); }

using namespace packing;

namespace {

[[noreturn]] void fail(const std::string& stage, const std::string& what) {
    first_failing = 0;
    std::fprintf(stderr, "FAILED: %s: %s\n", stage.c_str(), what.c_str());
    std::abort();
}

// Compares what a stage returns, for any failing allocation, to what it returns without.
// `room` is where it writes, whose content it may not change unless it returns.
template <class Run>
void fail_each(const std::string& stage, Rows& room, const Run& run) {
    const Rows before = room;
    const auto expected = run();
    const Rows written = room;
    // One failing allocation, and all from one on.
    for (const bool only : {true, false}) {
        std::int64_t thrown = 0;
        std::int64_t done_without = 0;
        for (std::int64_t number = 1;; ++number) {
            room = before;
            const std::int64_t live_before = live;
            by_worker = false;
            made = 0;
            last_failing = only ? number : std::numeric_limits<std::int64_t>::max();
            first_failing = number;
            bool is_thrown = false;
            bool is_last = false;
            try {
                const auto result = run();
                is_last = made < number;
                first_failing = 0;
                if (result != expected || room != written) {
                    fail(stage, "another result without allocation " + std::to_string(number));
                }
            } catch (const std::bad_alloc&) {
                is_thrown = true;
                first_failing = 0;
            }
            if (live != live_before) {
                fail(stage, "leaks without allocation " + std::to_string(number));
            }
            if (is_thrown && room != before) {
                fail(stage, "writes without allocation " + std::to_string(number));
            }
            if (by_worker) {
                fail(stage, "allocates on a thread of its own");
            }
            if (is_last) {
                break;
            }
            (is_thrown ? thrown : done_without) += 1;
        }
        std::printf("%-28s %-10s %6lld bad_alloc %6lld right result\n", stage.c_str(),
                    only ? "one fails" : "rest fails", static_cast<long long>(thrown),
                    static_cast<long long>(done_without));
        if (thrown == 0) {
            fail(stage, "no allocation has failed");
        }
    }
}

Case make_case(int num_threads) {
    std::mt19937_64 random(5);
    Case at;
    at.limits = {60, 40, 2, 7};
    at.threads = {num_threads, 1};
    for (int i = 0; i < 90; ++i) {
        at.lengths.push_back(static_cast<std::int64_t>(random() % 45));
    }
    return at;
}

void check_stages(int num_threads) {
    const Case at = make_case(num_threads);
    const Threads threads = at.threads;
    const std::span<const std::int64_t> lengths(at.lengths);
    const std::string on = ", " + std::to_string(num_threads) + " threads";
    Rows none;
    fail_each("count, small table" + on, none, [&] { return count(lengths, at.limits, threads); });
    fail_each("count, large table" + on, none,
              [&] { return count(lengths, Limits{1'000'000}, threads); });
    Case sparse = at;
    sparse.lengths.back() = std::int64_t{1} << 40;
    fail_each("count, sorted" + on, none, [&] {
        return count(std::span<const std::int64_t>(sparse.lengths), Limits{}, threads);
    });

    const TokenCounts counts = count(lengths, at.limits, threads);
    const TokenCounts half = count(lengths.first(45), at.limits, threads);
    const Layout layout = lay_out(at);
    const std::size_t num_rows = lengths.size();
    if (num_threads == 1) {
        fail_each("add", none, [&] { return add(counts, half); });
        fail_each("from_pairs", none, [&] { return from_pairs(counts); });
        fail_each("subset", none, [&] { return subset(counts, counts.sequences); });
        fail_each("first_fit_decreasing", none, [&] { return first_fit_decreasing(counts); });
        fail_each("validate", none, [&] {
            layout.validate();
            return true;
        });
        fail_each("patterns_of", none, [&] { return patterns_of(layout); });
        const auto [patterns, numbers] = patterns_of(layout);
        const std::vector<Pattern> some(patterns.begin(), patterns.begin() + 4);
        const Rows once(some.size(), 1);
        fail_each("layout_from_patterns", none,
                  [&] { return layout_from_patterns(counts, some, once); });
        const Rows values(counts.tokens.rbegin(), counts.tokens.rend());
        fail_each("price_patterns", none,
                  [&] { return price_patterns(counts, values, 0, 3).patterns; });
        const std::vector<Fill> fills(3, Fill{at.limits.max_tokens_per_batch / 2, 1});
        fail_each("place", none, [&] { return place(fills, counts.tokens, at.limits); });
        fail_each("patterns_with_reservation", none,
                  [&] { return patterns_with_reservation(counts); });
        const CoarseCounts coarse = coarsen(counts, 3, 5, Rounding::nearest);
        fail_each("coarsen", none, [&] {
            CoarseCounts again = coarsen(counts, 3, 5, Rounding::nearest);
            return std::pair(std::move(again.counts), std::move(again.first_size));
        });
        const auto [guides, batches] = patterns_of(first_fit_decreasing(coarse.counts));
        fail_each("refine", none, [&, &guides = guides, &batches = batches] {
            Refined refined = refine(counts, coarse.first_size, guides, batches);
            return std::tuple(std::move(refined.patterns), std::move(refined.num_batches),
                              std::move(refined.remaining));
        });
        const TokenCounts open = with_limits(counts, {60, 40, 2});
        fail_each("price_patterns, any number", none,
                  [&] { return price_patterns(open, values, 0, 3).patterns; });
    }

    Rows out(num_rows, -1);
    for (const Place place : {Place::batch, Place::slot}) {
        fail_each((place == Place::batch ? "assign, batches" : "assign, slots") + on, out, [&] {
            assign(layout, lengths.subspan(45), half, place, std::span(out).subspan(45), threads);
            return true;
        });
    }
    const Rows ranks(counts.tokens.size());
    Rows places(2 * ranks.size());
    fail_each("place_ranks" + on, places, [&] {
        const std::span all(places);
        place_ranks(layout, std::span<const std::int64_t>(counts.tokens),
                    std::span<const std::int64_t>(ranks), all.first(ranks.size()),
                    all.subspan(ranks.size()), threads);
        return true;
    });
    Rows scratch(num_rows);
    Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
    Rows rows(num_rows, -1);
    Rows numbers(num_rows);
    std::vector<Text> texts;
    const std::string letters = "ABABACABADABRA";
    for (std::size_t row = 0; row < num_rows; ++row) {
        numbers[row] = static_cast<std::int64_t>(row % 5);
        texts.emplace_back(letters.data() + row % 4, row % 11, 1U);
    }
    const std::pair<const char*, Ids> orders[] = {
        {"list_rows", Ids{}},
        {"list_rows, numbers", std::span<const std::int64_t>(numbers)},
        {"list_rows, texts", std::span<const Text>(texts)}};
    for (const auto& order : orders) {
        const Ids& ids = order.second;
        fail_each(order.first + on, rows, [&] {
            list_rows(layout, lengths, ids, std::span(scratch), std::span(rows), std::span(offsets),
                      threads);
            return offsets.back();
        });
    }
    Rows shuffled(num_rows, -1);
    fail_each("shuffle_rows" + on, shuffled, [&] {
        shuffle_rows(layout, std::span<const std::int64_t>(rows), 1, std::span(scratch),
                     std::span(shuffled), threads);
        return true;
    });
}

void check_scanner() {
    const std::string text =
        ">a protein\nMKTAYIAKQR\n>a protein with an ID too long for a string without memory\nmk*\n";
    Rows none;
    for (const std::string& end : {std::string(">b\nMK\n"), std::string(">b\nM1")}) {
        fail_each(end == ">b\nM1" ? "scanner, fault" : "scanner", none, [&] {
            fasta::Scanner scanner({}, true);
            scanner.feed(text + text.substr(0, 20));
            fasta::Records first = scanner.take();
            scanner.feed("\n" + text + end);
            scanner.finish();
            return std::tuple(std::move(first), scanner.take(), scanner.fault());
        });
    }
}

}  // namespace

int main() {
    main_thread = std::this_thread::get_id();
    check_scanner();
    check_stages(1);
    check_stages(4);
}
