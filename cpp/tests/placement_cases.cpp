// Sequences that are placed in open batches, beside the obvious algorithm.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "packing/placement.hpp"
#include "tests/cases.hpp"

namespace packing {

namespace {

Rows place_naively(std::vector<Fill> batches, const Rows& sizes, const Limits& limits) {
    Rows placed;
    for (const std::int64_t size : sizes) {
        std::size_t batch = 0;
        while (batch < batches.size() &&
               (batches[batch].tokens > limits.max_tokens_per_batch - size ||
                batches[batch].sequences == limits.max_sequences_per_batch)) {
            ++batch;
        }
        batches.resize(std::max(batches.size(), batch + 1), Fill{0, 0});
        batches[batch].tokens += size;
        ++batches[batch].sequences;
        placed.push_back(static_cast<std::int64_t>(batch));
    }
    return placed;
}

}  // namespace

void check_placement(const Case& at, std::mt19937_64& random) {
    const auto below = [&](std::int64_t end) {
        return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end));
    };
    const Limits& limits = at.limits;
    std::vector<Fill> open(static_cast<std::size_t>(below(5)));
    for (Fill& batch : open) {
        const std::int64_t budget = limits.max_tokens_per_batch;
        batch.tokens = below(3) == 0 ? budget - below(std::min<std::int64_t>(budget, 3) + 1)
                                     : below(budget + 1);
        batch.sequences = below(std::min<std::int64_t>(limits.max_sequences_per_batch, 100) + 1);
    }
    Rows sizes;
    for (const std::int64_t length : at.lengths) {
        sizes.push_back(at.tokens(length));
    }
    if (below(2) == 0) {
        std::ranges::sort(sizes, std::greater{});
    }
    if (place(open, sizes, limits) != place_naively(open, sizes, limits)) {
        fail(at, "sequences are placed in other batches");
    }
}

}  // namespace packing
