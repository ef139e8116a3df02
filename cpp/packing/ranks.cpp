#include "packing/ranks.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "packing/histogram.hpp"

namespace packing {

namespace {

// Finds sizes by their tokens: in a table if it is small, or by binary search.
class Sizes {
  public:
    Sizes(std::span<const std::int64_t> tokens, std::size_t num_rows) : tokens_(tokens) {
        if (tokens.empty() || !use_dense_table(as_unsigned(tokens.front()) + 1, num_rows)) {
            return;
        }
        table_.resize(static_cast<std::size_t>(tokens.front()) + 1, tokens.size());
        for (std::size_t size = 0; size < tokens.size(); ++size) {
            table_[static_cast<std::size_t>(tokens[size])] = size;
        }
    }

    // Returns the index of a size, or the number of sizes if there is no such size.
    std::size_t find(std::int64_t tokens) const {
        if (!table_.empty()) {
            return as_unsigned(tokens) < table_.size() ? table_[as_unsigned(tokens)]
                                                       : tokens_.size();
        }
        const auto found = std::ranges::lower_bound(tokens_, tokens, std::greater{});
        return found != tokens_.end() && *found == tokens
                   ? static_cast<std::size_t>(found - tokens_.begin())
                   : tokens_.size();
    }

  private:
    std::span<const std::int64_t> tokens_;  // largest first
    std::vector<std::size_t> table_;
};

// A row that asks for a sequence which the layout does not have.
struct Fault {
    bool is_set = false;
    std::size_t row = 0;
    std::size_t size = 0;
    std::int64_t tokens = 0;
    std::int64_t rank = 0;
};

[[noreturn]] void throw_fault(const Layout& layout, const Fault& fault) {
    const std::string row = std::to_string(fault.row);
    if (fault.size == layout.counts.tokens.size()) {
        throw std::invalid_argument("tokens[" + row +
                                    "] is a size that the layout does not have (got " +
                                    std::to_string(fault.tokens) + ")");
    }
    throw std::invalid_argument("rank[" + row + "] must be from 0 to " +
                                std::to_string(layout.counts.sequences[fault.size] - 1) +
                                " for sequences of " + std::to_string(fault.tokens) +
                                " tokens (got " + std::to_string(fault.rank) + ")");
}

// Returns the run that has a sequence of the size.
const Run* find_run(std::span<const Run> runs, std::int64_t rank) {
    const auto after = std::ranges::upper_bound(runs, rank, {}, &Run::first_sequence);
    return runs.data() + (after - runs.begin()) - 1;
}

}  // namespace

template <class Tokens, class Rank, class Number>
void place_ranks(const Layout& layout, std::span<const Tokens> tokens, std::span<const Rank> ranks,
                 std::span<Number> batches, std::span<Number> slots, Threads threads) {
    const std::size_t num_rows = tokens.size();
    if (ranks.size() != num_rows || batches.size() != num_rows || slots.size() != num_rows) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    if (layout.counts.num_sequences() > std::numeric_limits<Number>::max()) {
        throw std::overflow_error("the type of the result is too narrow for the layout");
    }
    const std::size_t num_sizes = layout.counts.tokens.size();
    const Sizes sizes(layout.counts.tokens, num_rows);
    const int parts = num_parts(num_rows, threads);
    // The last run that each part has used of each size, as the next sequence is often in it. Few
    // rows of many sizes are placed sooner without.
    const bool keeps_runs = num_sizes <= num_rows;
    std::vector<const Run*> last_runs;
    if (keeps_runs) {
        last_runs.reserve(static_cast<std::size_t>(parts) * num_sizes);
        for (int part = 0; part < parts; ++part) {
            for (std::size_t size = 0; size < num_sizes; ++size) {
                last_runs.push_back(layout.runs_of(size).data());
            }
        }
    }
    std::vector<Fault> faults(static_cast<std::size_t>(parts));
    parallel_for(parts, [&, tokens, ranks, batches, slots](int part) noexcept {
        const Run** const last =
            keeps_runs ? last_runs.data() + static_cast<std::size_t>(part) * num_sizes : nullptr;
        const auto [begin, end] = part_of(num_rows, parts, part);
        for (std::size_t row = begin; row < end; ++row) {
            const std::int64_t of_row = read_once(tokens[row]);
            const std::int64_t rank = read_once(ranks[row]);
            const std::size_t size = sizes.find(of_row);
            if (size == num_sizes || rank < 0 || rank >= layout.counts.sequences[size]) {
                faults[static_cast<std::size_t>(part)] = {true, row, size, of_row, rank};
                return;
            }
            const Run* run = keeps_runs ? last[size] : layout.runs_of(size).data();
            std::int64_t in_run = rank - run->first_sequence;
            if (in_run < 0 || in_run >= run->num_batches * run->per_batch) {
                run = find_run(layout.runs_of(size), rank);
                in_run = rank - run->first_sequence;
                if (keeps_runs) {
                    last[size] = run;
                }
            }
            batches[row] = static_cast<Number>(run->first_batch + in_run / run->per_batch);
            slots[row] = static_cast<Number>(run->first_slot + in_run % run->per_batch);
        }
    });
    for (const Fault& fault : faults) {
        if (fault.is_set) {
            throw_fault(layout, fault);
        }
    }
}

#define INSTANTIATE_NUMBER(Tokens, Rank, Number)                                             \
    template void place_ranks(const Layout&, std::span<const Tokens>, std::span<const Rank>, \
                              std::span<Number>, std::span<Number>, Threads);
#define INSTANTIATE(Tokens, Rank)                  \
    INSTANTIATE_NUMBER(Tokens, Rank, std::int32_t) \
    INSTANTIATE_NUMBER(Tokens, Rank, std::int64_t)
INSTANTIATE(std::int32_t, std::int32_t)
INSTANTIATE(std::int32_t, std::int64_t)
INSTANTIATE(std::int64_t, std::int32_t)
INSTANTIATE(std::int64_t, std::int64_t)

}  // namespace packing
