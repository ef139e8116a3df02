#include "packing/reservation.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "packing/checked.hpp"

namespace packing {

namespace {

// The sequences that remain to be packed.
class Remaining {
  public:
    explicit Remaining(const TokenCounts& counts)
        : tokens_(counts.tokens),
          sequences_(counts.sequences),
          larger_(counts.tokens.size() + 1),
          smaller_(counts.tokens.size() + 1),
          num_sequences_(counts.num_sequences()) {
        for (std::size_t size = 0; size < tokens_.size(); ++size) {
            num_tokens_ += tokens_[size] * sequences_[size];
        }
        std::iota(smaller_.begin(), smaller_.end(), std::size_t{0});
        std::iota(larger_.begin(), larger_.end(), std::size_t{0});
    }

    std::int64_t tokens(std::size_t size) const { return tokens_[size]; }
    std::int64_t sequences(std::size_t size) const { return sequences_[size]; }
    const std::vector<std::int64_t>& sequences() const { return sequences_; }
    std::int64_t num_sequences() const { return num_sequences_; }
    std::int64_t num_tokens() const { return num_tokens_; }
    std::size_t end() const { return tokens_.size(); }

    // Returns the largest size from `first` on, of at most this many tokens.
    std::size_t at_most(std::int64_t most, std::size_t first) {
        const auto found =
            std::ranges::lower_bound(std::span(tokens_).subspan(first), most, std::greater{});
        return find(smaller_, static_cast<std::size_t>(found - tokens_.begin()));
    }

    // Returns one more than the smallest size before `end`; 0 if there is none.
    std::size_t last_before(std::size_t end) { return find(larger_, end); }

    void take(std::size_t size, std::int64_t number) {
        sequences_[size] -= number;
        num_sequences_ -= number;
        num_tokens_ -= number * tokens_[size];
        if (sequences_[size] == 0) {
            smaller_[size] = size + 1;
            larger_[size + 1] = size;
        }
    }

  private:
    // Follows links to their end, and shortens them.
    static std::size_t find(std::vector<std::size_t>& links, std::size_t from) {
        std::size_t to = from;
        while (links[to] != to) {
            to = links[to];
        }
        while (links[from] != to) {
            from = std::exchange(links[from], to);
        }
        return to;
    }

    std::span<const std::int64_t> tokens_;
    std::vector<std::int64_t> sequences_;
    std::vector<std::size_t> larger_;
    std::vector<std::size_t> smaller_;
    std::int64_t num_sequences_;
    std::int64_t num_tokens_ = 0;
};

// The smallest sequences that remain of some sizes: up to a number of slots, as many as fit.
class Smallest {
  public:
    // Reads the sizes [first, last).
    Smallest(Remaining& remaining, std::size_t first, std::size_t last, std::int64_t slots,
             std::int64_t free) {
        for (std::size_t end = remaining.last_before(last); end > first;
             end = remaining.last_before(end - 1)) {
            const std::int64_t tokens = remaining.tokens(end - 1);
            std::int64_t number = std::min(remaining.sequences(end - 1), slots - num_sequences());
            if (tokens > 0) {
                number = std::min(number, free / tokens);
            }
            free -= number * tokens;
            steps_.push_back({num_sequences() + number, num_tokens() + number * tokens, tokens});
            if (number < remaining.sequences(end - 1)) {
                break;
            }
        }
    }

    std::int64_t num_sequences() const { return steps_.back().num_sequences; }
    std::int64_t num_tokens() const { return steps_.back().num_tokens; }

    // Returns the tokens of the smallest sequences of a number of slots, at most those read.
    std::int64_t tokens(std::int64_t slots) const {
        if (slots <= 0) {
            return 0;
        }
        const auto step = std::ranges::lower_bound(steps_, slots, {}, &Step::num_sequences);
        return step->num_tokens - (step->num_sequences - slots) * step->tokens;
    }

  private:
    // After a size: the number of sequences so far, and their tokens.
    struct Step {
        std::int64_t num_sequences;
        std::int64_t num_tokens;
        std::int64_t tokens;
    };
    std::vector<Step> steps_{{0, 0, 0}};
};

// A batch that is being filled.
struct Batch {
    Pattern pattern;
    std::int64_t free;    // tokens
    std::int64_t places;  // sequences

    // Fills at most `most` slots with the sizes [first, last), with reservation for `smallest`.
    void fill(Remaining& remaining, std::size_t first, std::size_t last, const Smallest& smallest,
              std::int64_t most, std::int64_t reserved) {
        std::int64_t slots = smallest.num_sequences();
        most = std::min(most, places);
        for (std::size_t size = first; most > 0; ++size) {
            size = remaining.at_most(free - reserved - smallest.tokens(slots - 1), size);
            if (size >= last) {
                break;
            }
            const std::int64_t tokens = remaining.tokens(size);
            // The largest number of this size that leaves room for the smallest in later slots.
            std::int64_t number = 1;
            std::int64_t limit = std::min(remaining.sequences(size), most);
            if (tokens > 0) {
                limit = std::min(limit, (free - reserved) / tokens);
            }
            while (number < limit) {
                const std::int64_t middle = limit - (limit - number) / 2;
                if (middle * tokens + smallest.tokens(slots - middle) <= free - reserved) {
                    number = middle;
                } else {
                    limit = middle - 1;
                }
            }
            pattern.push_back({size, number});
            free -= number * tokens;
            places -= number;
            most -= number;
            slots -= number;
        }
    }
};

// The patterns made so far.
struct Batches {
    std::vector<Pattern> patterns;
    std::vector<std::int64_t> num_batches;
    std::int64_t num_parts = 0;

    // Uses a pattern at most `most` times, as often as the remaining sequences allow; returns how
    // often.
    std::int64_t use(Remaining& remaining, Pattern pattern, std::int64_t most) {
        for (const auto& [size, sequences] : pattern) {
            most = std::min(most, remaining.sequences(size) / sequences);
        }
        for (const auto& [size, sequences] : pattern) {
            remaining.take(size, most * sequences);
        }
        num_parts += static_cast<std::int64_t>(pattern.size());
        patterns.push_back(std::move(pattern));
        num_batches.push_back(most);
        return most;
    }
};

void fill_batches(Remaining& remaining, const Limits& limits, std::int64_t max_parts,
                  Batches& batches) {
    const std::int64_t budget = limits.max_tokens_per_batch;
    const std::int64_t places = limits.max_sequences_per_batch;
    while (remaining.num_sequences() > 0 && batches.num_parts < max_parts) {
        const std::int64_t num_batches =
            std::max<std::int64_t>(1, ceil_divide(remaining.num_tokens(), budget));
        const std::int64_t mean = ceil_divide(remaining.num_sequences(), num_batches);
        const Smallest smallest(remaining, 0, remaining.end(), std::min(places, mean), budget);
        Batch batch{{}, budget, places};
        batch.fill(remaining, 0, remaining.end(), smallest, places, 0);
        batches.use(remaining, std::move(batch.pattern), unlimited);
    }
}

// A size of a coarse layout, as the sizes [first, last) that were rounded to it, and its slots.
struct CoarsePart {
    std::size_t first;
    std::size_t last;
    std::int64_t slots;
};

// Makes batches of a coarse pattern, at most `most`.
void refine_pattern(Remaining& remaining, const Limits& limits, std::span<const CoarsePart> parts,
                    std::int64_t most, Batches& batches) {
    std::vector<Smallest> smallest;
    while (most > 0) {
        smallest.clear();
        std::int64_t reserved = 0;
        Batch batch{{}, limits.max_tokens_per_batch, limits.max_sequences_per_batch};
        for (const CoarsePart& part : parts) {
            smallest.emplace_back(remaining, part.first, part.last, part.slots, batch.free);
            if (smallest.back().num_tokens() > batch.free - reserved) {
                return;
            }
            reserved += smallest.back().num_tokens();
        }
        for (std::size_t i = 0; i < parts.size(); ++i) {
            reserved -= smallest[i].num_tokens();
            batch.fill(remaining, parts[i].first, parts[i].last, smallest[i], parts[i].slots,
                       reserved);
        }
        if (batch.pattern.empty()) {
            return;
        }
        most -= batches.use(remaining, std::move(batch.pattern), most);
    }
}

}  // namespace

Layout patterns_with_reservation(TokenCounts counts, std::int64_t max_parts) {
    counts.validate();
    Remaining remaining(counts);
    Batches batches;
    fill_batches(remaining, counts.limits, max_parts, batches);
    return layout_from_patterns(std::move(counts), batches.patterns, batches.num_batches);
}

CoarseCounts coarsen(const TokenCounts& counts, std::int64_t unit, std::size_t max_sizes,
                     Rounding rounding) {
    if (unit < 1 || unit > counts.limits.max_tokens_per_batch || max_sizes < 1) {
        throw std::invalid_argument("the unit or the number of sizes is out of range");
    }
    CoarseCounts coarse{{}, {0}};
    coarse.counts.limits.max_tokens_per_batch = counts.limits.max_tokens_per_batch / unit;
    coarse.counts.limits.max_sequences_per_batch = counts.limits.max_sequences_per_batch;
    // The sum of sequences times width is least if widths are proportional to the square root of
    // the number of sequences per token.
    const std::size_t num_sizes = counts.tokens.size();
    const auto weight = [&](std::size_t size) {
        const std::int64_t next = size + 1 < num_sizes ? counts.tokens[size + 1] : 0;
        return std::sqrt(static_cast<double>(counts.sequences[size]) *
                         static_cast<double>(counts.tokens[size] - next));
    };
    double total = 0;
    for (std::size_t size = 0; size < num_sizes; ++size) {
        total += weight(size);
    }
    const double share = num_sizes <= max_sizes ? 0 : total / static_cast<double>(max_sizes);
    // A size with so many sequences is not joined, since rounding would move all of them.
    const std::int64_t many =
        counts.num_sequences() / static_cast<std::int64_t>(std::min(max_sizes, num_sizes + 1)) + 1;
    const auto ends = [&](std::size_t size) {
        return size == num_sizes || counts.sequences[size] >= many ||
               counts.sequences[size - 1] >= many;
    };
    std::vector<std::int64_t>& joint = coarse.counts.tokens;
    for (std::size_t first = 0; first < num_sizes;) {
        std::size_t last = first;
        std::int64_t sequences = 0;
        std::int64_t tokens = 0;
        for (double width = 0; last == first || (width < share && !ends(last)); ++last) {
            width += weight(last);
            sequences += counts.sequences[last];
            tokens += counts.tokens[last] * counts.sequences[last];
        }
        const std::int64_t mean = tokens / sequences;
        // The budget may be no multiple of the unit.
        const std::int64_t rounded = std::min(
            coarse.counts.limits.max_tokens_per_batch,
            rounding == Rounding::down ? counts.tokens[last - 1] / unit
                                       : mean / unit + (mean % unit >= unit - unit / 2 ? 1 : 0));
        if (joint.empty() || joint.back() != rounded) {
            joint.push_back(rounded);
            coarse.counts.sequences.push_back(0);
            coarse.first_size.push_back(0);
        }
        coarse.counts.sequences.back() += sequences;
        coarse.first_size.back() = last;
        first = last;
    }
    return coarse;
}

Refined refine(const TokenCounts& counts, std::span<const std::size_t> first_size,
               std::span<const Pattern> patterns, std::span<const std::int64_t> num_batches) {
    counts.validate();
    const auto require = [](bool holds) {
        if (!holds) {
            throw std::invalid_argument("the coarse patterns are invalid");
        }
    };
    require(!first_size.empty() && first_size.front() == 0 && std::ranges::is_sorted(first_size) &&
            first_size.back() == counts.tokens.size() && patterns.size() == num_batches.size());
    Remaining remaining(counts);
    Batches batches;
    std::vector<CoarsePart> parts;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
        parts.clear();
        std::size_t least_size = 0;
        for (const auto& [size, sequences] : patterns[i]) {
            require(size >= least_size && size < first_size.size() - 1 && sequences >= 1 &&
                    num_batches[i] >= 1);
            least_size = size + 1;
            parts.push_back({first_size[size], first_size[size + 1], sequences});
        }
        refine_pattern(remaining, counts.limits, parts, num_batches[i], batches);
    }
    return {std::move(batches.patterns), std::move(batches.num_batches), remaining.sequences()};
}

}  // namespace packing
