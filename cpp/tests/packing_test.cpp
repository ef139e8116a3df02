// Compares the kernel with the obvious algorithm on random cases.
// Usage: packing_test [CASES [SEED [IN_PARTS]]]
// One of IN_PARTS cases is cut into parts for each thread, however small it is.

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __unix__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"
#include "packing/pricing.hpp"
#include "tests/cases.hpp"
#include "tests/refusals.hpp"

using namespace packing;

namespace {

// More rows than a thread handles alone, checked against one thread and by summing up.
void check_threads() {
    std::mt19937_64 random(1);
    std::lognormal_distribution<double> log_normal(5.6, 0.75);
    Case at;
    at.limits.max_tokens_per_batch = 4096;
    at.limits.max_sequence_length = 1022;
    at.limits.special_tokens = 2;
    at.lengths.resize(500'000);
    for (std::int64_t& length : at.lengths) {
        length = static_cast<std::int64_t>(log_normal(random));
    }
    const Layout layout = lay_out(at);
    layout.validate();
    const std::vector<Rows> expected = list(at, layout, Ids{});
    for (const int num_threads : {2, 3, 7}) {
        at.threads.max = num_threads;
        if (lay_out(at) != layout || list(at, layout, Ids{}) != expected) {
            fail(at, "threads change the result");
        }
        check_places(at, layout, expected, random);
    }
    // Sizes that need a table too large for several of them.
    at.limits.max_tokens_per_batch = 6000;
    at.limits.max_sequence_length = 5998;
    at.lengths.resize(20'000);
    for (std::int64_t& length : at.lengths) {
        length = static_cast<std::int64_t>(random() % 5000);
    }
    check_places(at, lay_out(at), list(at, lay_out(at), Ids{}), random);
}

// Eight threads at once, on cases of their own and then on the same one.
void check_concurrency(std::uint64_t seed, std::uint64_t in_parts) {
    const auto on_eight_threads = [](const std::function<void(std::uint64_t)>& run) {
        std::vector<std::thread> threads;
        threads.reserve(8);
        for (std::uint64_t i = 0; i < 8; ++i) {
            threads.emplace_back(run, i);
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    };
    on_eight_threads([&](std::uint64_t i) {
        std::mt19937_64 random(seed + i);
        for (int n = 0; n < 50; ++n) {
            check(random_case(random, in_parts), random);
        }
    });
    std::mt19937_64 random(seed);
    for (int n = 0; n < 20; ++n) {
        const Case at = random_case(random, in_parts);
        const Layout layout = lay_out(at);
        const std::vector<Rows> expected = list(at, layout, Ids{});
        on_eight_threads([&](std::uint64_t i) {
            std::mt19937_64 own(i);
            if (lay_out(at) != layout || list(at, layout, Ids{}) != expected) {
                fail(at, "threads that share a case get other batches");
            }
            check_places(at, layout, expected, own);
        });
    }
}

#ifdef __unix__
// Lengths on two pages, of which the second cannot be read before the first length has changed.
std::span<std::int8_t> trap;

void spring_trap(int) {
    trap.front() = 1;
    mprotect(trap.data() + trap.size() / 2, trap.size() / 2, PROT_READ);
}
#endif

// Lengths that change while they are used: here because the kernel is made to write over them.
void check_changes() {
    using Invalid = std::invalid_argument;
    const auto layout_for = [](std::vector<std::int64_t> lengths) {
        return first_fit_decreasing(
            count(std::span<const std::int64_t>(lengths), Limits{2, 1, 1}, 1));
    };
    // Row 0 goes to batch 0, whose number is written over the length of row 1.
    Rows ones{1, 1, 0};
    const std::span<std::int64_t> all(ones);
    const Layout of_ones = layout_for({1, 1});
    TokenCounts none = of_ones.counts;
    none.tokens.clear();
    none.sequences.clear();
    expect_error<Invalid>("changed while they were being assigned", [&] {
        assign(of_ones, std::span<const std::int64_t>(all.first(2)), none, Place::batch,
               all.last(2), 1);
    });
    const auto list_over = [&](Rows room, std::size_t num_rows, std::size_t scratch) {
        const std::span<std::int64_t> whole(room);
        const std::span<const std::int64_t> lengths = whole.first(num_rows);
        const Layout layout = layout_for({lengths.begin(), lengths.end()});
        Rows out(num_rows);
        Rows offsets(static_cast<std::size_t>(layout.num_batches) + 1);
        expect_error<Invalid>("changed while they were being assigned", [&] {
            list_rows(layout, lengths, Ids{}, whole.subspan(scratch, num_rows), std::span(out),
                      std::span(offsets), 1);
        });
    };
    // Row 0 is written over the length of row 1, which then has no place left.
    list_over({0, 1}, 2, 0);
    // Row 1 is written over the length of row 2, which then takes the place of another size.
    list_over({0, 1, 0, 0, 0}, 3, 2);

#ifdef __unix__
    // Counting writes nothing, so here the first length changes as soon as the second page is read.
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory =
        mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        fail({}, "no memory to map");
    }
    trap = {static_cast<std::int8_t*>(memory), 2 * page};
    trap.front() = -1;
    mprotect(trap.data() + page, page, PROT_NONE);
    const auto before = std::signal(SIGSEGV, spring_trap);
    expect_error<Invalid>("lengths changed while they were being counted",
                          [] { count(std::span<const std::int8_t>(trap), Limits{2, 1, 1}, 1); });
    std::signal(SIGSEGV, before);
    munmap(memory, 2 * page);
#endif
}

// Texts without a letter are equal.
void check_empty_texts() {
    Case at;
    at.lengths.assign(5, 1);
    std::vector<Text> texts(5);
    texts[3] = {nullptr, 0, 4};
    if (list(at, lay_out(at), std::span<const Text>(texts)) != list(at, lay_out(at), Ids{})) {
        fail(at, "empty texts change the order of rows");
    }
}

// Sums that just fit in 64 bits, and those that just do not.
void check_overflow() {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    const auto counts_of = [](std::int64_t tokens, std::int64_t sequences) {
        TokenCounts counts;
        counts.tokens.push_back(tokens);
        counts.sequences.push_back(sequences);
        return counts;
    };
    if (counts_of(7, most / 7).total_tokens() != most ||
        add(counts_of(1, most - 5), counts_of(1, 5)).num_sequences() != most ||
        add(counts_of(2, most - 5), counts_of(1, 5)).num_sequences() != most) {
        fail({}, "sums that fit in 64 bits are wrong");
    }
    expect_error<std::overflow_error>("number of tokens",
                                      [&] { counts_of(7, most / 7 + 1).total_tokens(); });
    for (const std::int64_t tokens : {1, 2}) {
        expect_error<std::overflow_error>(
            "number of sequences", [&] { add(counts_of(tokens, most - 5), counts_of(1, 6)); });
    }
    TokenCounts cut = counts_of(max_tokens, 1);
    cut.num_truncated = 1;
    cut.truncated_residues = most;
    expect_error<std::overflow_error>("truncated residues", [&] { add(cut, cut); });
    const auto limited = [](TokenCounts counts, std::int64_t budget, std::int64_t sequences) {
        counts.limits.max_tokens_per_batch = budget;
        counts.limits.max_sequences_per_batch = sequences;
        return counts;
    };
    const TokenCounts few = limited(counts_of(1, 4), 4, unlimited);
    expect_error<std::overflow_error>(
        "53 bits", [&] { price_patterns(few, Rows{std::int64_t{1} << 51}, 0, 1); });
    const std::int64_t value = (std::int64_t{1} << 51) - 1;
    if (price_patterns(few, Rows{value}, 0, 1).best_value != 4 * value) {
        fail({}, "a value that fits in 53 bits is wrong");
    }
    expect_error<std::overflow_error>("number of steps", [&] {
        price_patterns(limited(counts_of(1, most), max_tokens, 3), Rows{1}, 0, 1);
    });
    // One piece, repeated, where a batch has no room for all; powers of two where it has.
    if (pricing_steps(limited(counts_of(1, most), 9, unlimited)) != 10 ||
        pricing_steps(limited(few, 9, unlimited)) != 30) {
        fail({}, "the number of steps is wrong");
    }
    // As many sequences as there can be are taken together in powers of two.
    const TokenCounts endless = counts_of(1, max_tokens);
    expect_error<std::overflow_error>("number of steps", [&] { pricing_steps(endless); });
    expect_error<std::invalid_argument>("one dual value per size",
                                        [&] { price_patterns(few, Rows{1, 1}, 0, 1); });
}

// Three rows of one size come in each of their six orders about as often.
void check_shuffle() {
    const std::vector<std::int8_t> lengths(3, 1);
    const Layout layout =
        first_fit_decreasing(count(std::span<const std::int8_t>(lengths), Limits{1, 1}, 1));
    const Rows rows{0, 1, 2};
    Rows scratch(3);
    Rows out(3);
    std::map<Rows, int> times;
    for (std::uint64_t seed = 0; seed < 6000; ++seed) {
        shuffle_rows(layout, std::span<const std::int64_t>(rows), seed, std::span(scratch),
                     std::span(out), 1);
        ++times[out];
    }
    if (times.size() != 6 || std::ranges::any_of(times, [](const auto& order_and_times) {
            return order_and_times.second < 850 || order_and_times.second > 1150;
        })) {
        fail({}, "orders of rows are not equally likely");
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long long cases = argc > 1 ? std::atoll(argv[1]) : 20'000;
    const long long seed = argc > 2 ? std::atoll(argv[2]) : 0;
    const auto in_parts = static_cast<std::uint64_t>(argc > 3 ? std::atoll(argv[3]) : 15);
    check_errors();
    check_more_errors();
    check_changes();
    check_empty_texts();
    check_overflow();
    check_forgeries();
    check_bad_patterns();
    check_bad_coarse_patterns();
    check_bad_placement();
    check_bad_pairs_and_ranks();
    check_shuffle();
    check_threads();
    check_concurrency(static_cast<std::uint64_t>(seed), in_parts);
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    for (long long i = 0; i < cases; ++i) {
        check(random_case(random, in_parts), random);
    }
    std::printf("%lld cases equal the reference\n", cases);
}
