// What the batches of a layout contain.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "packing/layout.hpp"

namespace packing {

namespace {

// Writes the sum over the runs that cover each batch of amount(size, run).
template <class Amount>
void add_over_batches(const Layout& layout, std::span<std::int64_t> out, Amount amount) {
    std::ranges::fill(out, 0);
    for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
        for (const Run& run : layout.runs_of(size)) {
            const std::int64_t value = amount(size, run);
            const auto first = static_cast<std::size_t>(run.first_batch);
            const auto last = first + static_cast<std::size_t>(run.num_batches);
            out[first] += value;
            if (last < out.size()) {
                out[last] -= value;
            }
        }
    }
    for (std::size_t batch = 1; batch < out.size(); ++batch) {
        out[batch] += out[batch - 1];
    }
}

}  // namespace

void batch_tokens(const Layout& layout, std::span<std::int64_t> tokens) {
    add_over_batches(layout, tokens, [&](std::size_t size, const Run& run) {
        return layout.counts.tokens[size] * run.per_batch;
    });
}

void batch_offsets(const Layout& layout, std::span<std::int64_t> offsets) {
    const std::span<std::int64_t> sequences = offsets.subspan(1);
    add_over_batches(layout, sequences, [](std::size_t, const Run& run) { return run.per_batch; });
    offsets[0] = 0;
    for (std::size_t batch = 1; batch < offsets.size(); ++batch) {
        offsets[batch] += offsets[batch - 1];
    }
}

std::vector<std::int64_t> tokens_of_batches(const Layout& layout, std::int64_t first,
                                            std::int64_t last) {
    if (first < 0 || first > last || last > layout.num_batches) {
        throw std::invalid_argument("the layout does not have batches " + std::to_string(first) +
                                    " to " + std::to_string(last));
    }
    const auto index = [first](std::int64_t batch) {
        return static_cast<std::size_t>(batch - first);
    };
    // Calls visit(size, run, begin, end) for each run, largest sizes first, and its batches.
    const auto for_each_run = [&](const auto& visit) {
        for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
            const std::span<const Run> runs = layout.runs_of(size);
            auto run = std::ranges::upper_bound(runs, first, {}, &Run::first_batch);
            run -= run == runs.begin() ? 0 : 1;
            for (; run != runs.end() && run->first_batch < last; ++run) {
                visit(size, *run, std::max(first, run->first_batch),
                      std::min(last, run->first_batch + run->num_batches));
            }
        }
    };
    // The place of the next sequence of each batch.
    std::vector<std::int64_t> places(index(last) + 1);
    for_each_run([&](std::size_t, const Run& run, std::int64_t begin, std::int64_t end) {
        for (std::int64_t batch = begin; batch < end; ++batch) {
            places[index(batch) + 1] += run.per_batch;
        }
    });
    std::inclusive_scan(places.begin(), places.end(), places.begin());
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(places.back()));
    for_each_run([&](std::size_t size, const Run& run, std::int64_t begin, std::int64_t end) {
        for (std::int64_t batch = begin; batch < end; ++batch) {
            std::fill_n(tokens.begin() + places[index(batch)], run.per_batch,
                        layout.counts.tokens[size]);
            places[index(batch)] += run.per_batch;
        }
    });
    return tokens;
}

}  // namespace packing
