#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "packing/counts.hpp"

namespace packing {

// Consecutive batches with equally many sequences of one size.
struct Run {
    std::int64_t first_sequence;  // its number among the sequences of this size
    std::int64_t first_batch;
    std::int64_t num_batches;
    std::int64_t per_batch;   // sequences of this size in each batch
    std::int64_t first_slot;  // place of the first of them in each batch

    bool operator==(const Run&) const = default;
};

// A pattern is a way to fill a batch: a number of sequences of each size, in order of sizes.
struct PatternPart {
    std::size_t size;  // index into counts.tokens
    std::int64_t sequences;

    bool operator==(const PatternPart&) const = default;
};
using Pattern = std::vector<PatternPart>;

// Batches without rows: the runs of batches of each size.
struct Layout {
    TokenCounts counts;
    std::int64_t num_batches = 0;
    // A proven lower bound on the number of batches of any packing; 0 if none is known.
    std::int64_t proven_bound = 0;
    // The runs of counts.tokens[i] are runs[first_run[i]] to runs[first_run[i + 1]] (exclusive), in
    // order of batches. Sequences of equal size are numbered in the order of ties.
    std::vector<std::size_t> first_run;
    std::vector<Run> runs;

    const Limits& limits() const { return counts.limits; }

    std::span<const Run> runs_of(std::size_t size) const {
        return std::span(runs).subspan(first_run[size], first_run[size + 1] - first_run[size]);
    }

    // Throws std::invalid_argument unless every sequence has exactly one slot, the slots of a batch
    // are filled from 0 in order of decreasing size, and no batch is empty or exceeds the limits.
    void validate() const;

    auto fields() const {
        return std::tie(counts.limits, counts, num_batches, proven_bound, first_run, runs);
    }

    bool operator==(const Layout& other) const { return fields() == other.fields(); }
};

// First-Fit Decreasing (Johnson, Near-Optimal Bin Packing Algorithms, 1973): each sequence, longest
// first, goes to the first batch with enough room. Throws std::overflow_error if the number of
// tokens does not fit in 64 bits. Cost: O(runs * log(runs)), independent of the number of
// sequences.
Layout first_fit_decreasing(TokenCounts counts);

// Returns the layout with num_batches[i] batches of patterns[i]. The remaining sequences, longest
// first, go to the first batch with enough room, or to new batches. Batches are in order of
// decreasing longest sequence. Throws std::invalid_argument if a batch exceeds a limit or the
// patterns need more sequences than there are.
Layout layout_from_patterns(TokenCounts counts, std::span<const Pattern> patterns,
                            std::span<const std::int64_t> num_batches);

// Returns the distinct patterns of a layout, and the number of batches of each.
std::pair<std::vector<Pattern>, std::vector<std::int64_t>> patterns_of(const Layout& layout);

// Returns the layout with a proven bound. Throws std::invalid_argument if the bound exceeds the
// number of batches.
Layout with_bound(Layout layout, std::int64_t proven_bound);

// Returns a lower bound on the number of batches of any packing: the maximum of the proven bound,
// the bound L2 of Martello and Toth (Lower Bounds and Reduction Procedures for the Bin Packing
// Problem, 1990), and the bound by the limit on sequences.
std::int64_t lower_bound(const Layout& layout);

// Writes the tokens of each batch.
void batch_tokens(const Layout& layout, std::span<std::int64_t> tokens);

// Writes the number of sequences before each batch, and the total.
void batch_offsets(const Layout& layout, std::span<std::int64_t> offsets);

// Returns the tokens of each sequence of the batches [first, last), in order of batches and slots.
// Throws std::invalid_argument unless the layout has these batches. Cost: O(sizes * log(runs)) and
// O(sequences).
std::vector<std::int64_t> tokens_of_batches(const Layout& layout, std::int64_t first,
                                            std::int64_t last);

// A run that covers a batch.
struct Part {
    std::size_t size;  // index into counts.tokens
    const Run* run;
};

// Iterates over the batches of a layout. Consecutive batches covered by the same runs form one
// stretch.
class Stretches {
  public:
    explicit Stretches(const Layout& layout);

    // Calls visit(first, last, parts) for each stretch of batches [first, last) in
    // [first_batch, last_batch), with its parts in order of slots. Does not allocate if `room` has
    // capacity for one part per size.
    template <class Visit>
    void walk(std::int64_t first_batch, std::int64_t last_batch, std::vector<Part>& room,
              const Visit& visit) const;

  private:
    std::vector<Part> starts_;  // all runs, in order of first batch, then of size
};

template <class Visit>
void Stretches::walk(std::int64_t first_batch, std::int64_t last_batch, std::vector<Part>& room,
                     const Visit& visit) const {
    const auto end_of = [](const Part& part) {
        return part.run->first_batch + part.run->num_batches;
    };
    std::vector<Part>& parts = room;
    parts.clear();
    auto next = starts_.begin();
    for (std::int64_t batch = first_batch; batch < last_batch;) {
        std::erase_if(parts, [&](const Part& part) { return end_of(part) <= batch; });
        for (; next != starts_.end() && next->run->first_batch <= batch; ++next) {
            if (end_of(*next) > batch) {
                parts.insert(std::ranges::upper_bound(parts, next->size, {}, &Part::size), *next);
            }
        }
        std::int64_t end = next == starts_.end() ? last_batch : next->run->first_batch;
        end = std::min(end, last_batch);
        for (const Part& part : parts) {
            end = std::min(end, end_of(part));
        }
        visit(batch, end, std::span<const Part>(parts));
        batch = end;
    }
}

}  // namespace packing
