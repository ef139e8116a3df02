#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "packing/counts.hpp"

namespace packing {

// Neighbouring batches that take equally many sequences of one size.
struct Run {
    std::int64_t first_sequence;  // its place among the sequences of this size
    std::int64_t first_batch;
    std::int64_t num_batches;
    std::int64_t per_batch;   // sequences of this size in each batch
    std::int64_t first_slot;  // place of the first of them within its batch

    bool operator==(const Run&) const = default;
};

// What a batch holds: how many sequences of which sizes, as indices into counts.tokens, in their
// order.
struct PatternPart {
    std::size_t size;
    std::int64_t sequences;

    bool operator==(const PatternPart&) const = default;
};
using Pattern = std::vector<PatternPart>;

// Which batches the sequences of each size go to: a plan without rows. It says nothing of how it
// was made.
struct Layout {
    TokenCounts counts;
    std::int64_t num_batches = 0;
    // No packing needs fewer batches than this, as whoever made the layout has proven; 0 if nobody
    // has.
    std::int64_t proven_bound = 0;
    // The runs of counts.tokens[i] are runs[first_run[i]] up to runs[first_run[i + 1]], in order
    // of batches; they hold the sequences of that size in the order of the tie-break.
    std::vector<std::size_t> first_run;
    std::vector<Run> runs;

    const Limits& limits() const { return counts.limits; }

    std::span<const Run> runs_of(std::size_t size) const {
        return std::span(runs).subspan(first_run[size], first_run[size + 1] - first_run[size]);
    }

    // Throws std::invalid_argument unless every sequence has a slot of its own, slots are filled
    // from 0 with the longest first, no batch is empty and none exceeds its limits.
    void validate() const;

    bool operator==(const Layout&) const = default;
};

// First-Fit Decreasing (Johnson, Near-Optimal Bin Packing Algorithms, 1973): each sequence, longest
// first, goes to the first batch that has room. Throws std::overflow_error where the tokens of all
// sequences need more than 64 bits. Cost O(runs * log(runs)), whatever the number of sequences.
Layout first_fit_decreasing(TokenCounts counts);

// The layout of batches filled by patterns, so many by each; sequences that are left over go,
// longest first, to the first batch that has room, or to new ones. Batches come in order of falling
// longest sequence. Throws std::invalid_argument where a batch exceeds a limit, or there are not so
// many sequences.
Layout layout_of(TokenCounts counts, std::span<const Pattern> patterns,
                 std::span<const std::int64_t> num_batches);

// The patterns of a layout, each once, and how many batches each fills.
std::pair<std::vector<Pattern>, std::vector<std::int64_t>> patterns_of(const Layout& layout);

// The layout with a bound that its maker has proven. Throws std::invalid_argument if it has fewer
// batches.
Layout with_bound(Layout layout, std::int64_t proven_bound);

// No packing needs fewer batches: that proven, the bound L2 of Martello and Toth (Lower Bounds and
// Reduction Procedures for the Bin Packing Problem, 1990), and that of the limit on sequences.
std::int64_t lower_bound(const Layout& layout);

// Tokens of each batch.
void batch_tokens(const Layout& layout, std::span<std::int64_t> tokens);

// offsets[b] is the number of sequences in the batches before b; one entry more than batches.
void batch_offsets(const Layout& layout, std::span<std::int64_t> offsets);

// A run among those that fill a batch.
struct Part {
    std::size_t size;  // index into counts.tokens
    const Run* run;
};

// Goes through a layout batch by batch. Neighbouring batches filled by the same runs are one
// stretch.
class Stretches {
  public:
    explicit Stretches(const Layout& layout);

    // Calls visit(first, last, parts) for each stretch of batches [first, last) between
    // first_batch and last_batch, with its parts in order of slots. Allocates nothing where
    // `room` has capacity for a part a size.
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
