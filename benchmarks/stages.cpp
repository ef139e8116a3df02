// Times the stages of packing in the kernel alone, against the machine's copy bandwidth.
// Usage: stages [SEQUENCES [REPEATS]]

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/layout.hpp"
#include "packing/parallel.hpp"
#include "packing/ranks.hpp"

using namespace packing;

namespace {

template <class Call>
double median_ms(int repeats, const Call& call) {
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        call();
        const auto end = std::chrono::steady_clock::now();
        times.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
    }
    std::ranges::sort(times);
    return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
    const auto num = static_cast<std::size_t>(argc > 1 ? std::atoll(argv[1]) : 10'000'000);
    const int repeats = argc > 2 ? std::atoi(argv[2]) : 15;
    std::mt19937_64 random(0);
    std::lognormal_distribution<double> log_normal(5.6, 0.75);
    std::vector<std::int32_t> numbers(num);
    for (std::int32_t& number : numbers) {
        number = static_cast<std::int32_t>(log_normal(random));
    }
    const std::span<const std::int32_t> lengths(numbers);
    std::vector<std::int32_t> scratch(num);
    std::vector<std::int32_t> out(num);
    std::vector<std::int32_t> tokens(num);
    std::vector<std::int32_t> ranks(num);
    std::vector<std::int32_t> next_rank(1025);
    for (std::size_t row = 0; row < num; ++row) {
        tokens[row] = std::min(numbers[row], 1022) + 2;
        ranks[row] = next_rank[static_cast<std::size_t>(tokens[row])]++;
    }
    const double bytes = 4e-6 * static_cast<double>(num);

    for (const int threads : {1, 2}) {
        const Limits limits{4096, 1022, 2};
        const TokenCounts counts = count(lengths, limits, threads);
        const Layout layout = first_fit_decreasing(counts);
        const TokenCounts none = count(lengths.first(0), limits, 1);
        std::vector<std::int64_t> offsets(static_cast<std::size_t>(layout.num_batches) + 1);
        std::printf("%d thread%s, %zu sequences\n", threads, threads > 1 ? "s" : "", num);
        const auto report = [&](const char* stage, double megabytes, const auto& call) {
            const double ms = median_ms(repeats, call);
            std::printf("  %-30s %8.2f ms %6.2f ns per sequence", stage, ms,
                        ms * 1e6 / static_cast<double>(num));
            if (megabytes > 0) {
                std::printf(" %6.1f GB/s", megabytes / ms);
            }
            std::printf("\n");
        };
        report("copy", 2 * bytes, [&] {
            parallel_for(threads, [&](int part) noexcept {
                const auto [begin, end] = part_of(num, threads, part);
                std::memcpy(out.data() + begin, numbers.data() + begin, 4 * (end - begin));
            });
        });
        report("fault in 4 bytes per sequence", bytes, [&] {
            const std::unique_ptr<std::int32_t[]> fresh(new std::int32_t[num]);
            parallel_for(threads, [&](int part) noexcept {
                const auto [begin, end] = part_of(num, threads, part);
                std::memset(fresh.get() + begin, 1, 4 * (end - begin));
            });
        });
        report("count", bytes, [&] { count(lengths, limits, threads); });
        report("layout", 0, [&] { first_fit_decreasing(counts); });
        // Lengths twice, rows by size and rows by batch once each, both written and one read.
        report("rows (list_rows)", 5 * bytes, [&] {
            list_rows(layout, lengths, Ids{}, std::span(scratch), std::span(out),
                      std::span(offsets), threads);
        });
        report("batch numbers (assign)", 3 * bytes,
               [&] { assign(layout, lengths, none, Place::batch, std::span(out), threads); });
        report("places (assign)", 3 * bytes,
               [&] { assign(layout, lengths, none, Place::slot, std::span(out), threads); });
        // Both at once.
        report("places by rank (place_ranks)", 4 * bytes, [&] {
            place_ranks(layout, std::span<const std::int32_t>(tokens),
                        std::span<const std::int32_t>(ranks), std::span(scratch), std::span(out),
                        threads);
        });
    }
}
