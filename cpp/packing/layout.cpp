#include "packing/layout.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include "packing/checked.hpp"

namespace packing {

namespace {

// Consecutive batches with equally many sequences and equally many free tokens.
struct Group {
    std::int64_t first_batch;
    std::int64_t num_batches;
    std::int64_t free_tokens;
    std::int64_t num_sequences;
};

// The groups with room for another sequence. Sizes come in decreasing order, so a group waits for
// the first size that fits, and is open from then on.
class Groups {
  public:
    Groups(std::span<const std::int64_t> tokens, std::int64_t max_sequences)
        : tokens_(tokens), max_sequences_(max_sequences), waiting_(tokens.size(), none) {
        const std::int64_t largest = tokens.empty() ? 0 : tokens.front();
        if (largest / table_ratio < std::ssize(tokens)) {
            largest_fitting_.resize(static_cast<std::size_t>(largest) + 1, tokens.size());
            for (std::size_t size = tokens.size(); size-- > 0;) {
                const std::int64_t end = size == 0 ? largest + 1 : tokens[size - 1];
                std::fill(largest_fitting_.begin() + tokens[size], largest_fitting_.begin() + end,
                          size);
            }
        }
    }

    // Opens the groups that wait for this size.
    void advance_to(std::size_t size) {
        size_ = size;
        for (std::size_t i = waiting_[size]; i != none; i = nodes_[i].next) {
            open(i);
        }
    }

    bool has_open() const { return !open_.empty(); }

    // Removes and returns the open group with the first batches.
    Group pop() {
        std::ranges::pop_heap(open_, std::greater{}, &Open::first_batch);
        const std::size_t node = open_.back().node;
        open_.pop_back();
        free_nodes_.push_back(node);
        return nodes_[node].group;
    }

    void put(const Group& group) {
        if (group.num_sequences == max_sequences_) {
            return;
        }
        const std::size_t size = next_fitting(group.free_tokens);
        if (size == tokens_.size()) {
            return;
        }
        const std::size_t node = make_node(group);
        if (size == size_) {
            open(node);
        } else {
            nodes_[node].next = std::exchange(waiting_[size], node);
        }
    }

  private:
    struct Node {
        Group group;
        std::size_t next;
    };
    struct Open {
        std::int64_t first_batch;
        std::size_t node;
    };
    static constexpr std::size_t none = static_cast<std::size_t>(-1);
    static constexpr std::int64_t table_ratio = 16;

    // Returns the first size, from the current one on, of at most this many tokens.
    std::size_t next_fitting(std::int64_t free_tokens) const {
        if (!largest_fitting_.empty()) {
            const auto last = static_cast<std::int64_t>(largest_fitting_.size()) - 1;
            const std::int64_t tokens = std::min(free_tokens, last);
            return std::max(size_, largest_fitting_[static_cast<std::size_t>(tokens)]);
        }
        const std::span<const std::int64_t> rest = tokens_.subspan(size_);
        const auto fits = std::ranges::lower_bound(rest, free_tokens, std::greater{});
        return size_ + static_cast<std::size_t>(fits - rest.begin());
    }

    std::size_t make_node(const Group& group) {
        if (free_nodes_.empty()) {
            nodes_.push_back({group, none});
            return nodes_.size() - 1;
        }
        const std::size_t node = free_nodes_.back();
        free_nodes_.pop_back();
        nodes_[node] = {group, none};
        return node;
    }

    void open(std::size_t node) {
        open_.push_back({nodes_[node].group.first_batch, node});
        std::ranges::push_heap(open_, std::greater{}, &Open::first_batch);
    }

    std::span<const std::int64_t> tokens_;
    std::int64_t max_sequences_;
    // The first size of at most each number of tokens, if the table is small relative to the sizes:
    // a look-up is faster than a binary search.
    std::vector<std::size_t> largest_fitting_;
    std::size_t size_ = 0;
    std::vector<std::size_t> waiting_;  // the head of a linked list per size
    std::vector<Node> nodes_;
    std::vector<std::size_t> free_nodes_;
    std::vector<Open> open_;  // a heap with the first batch on top
};

// A layout without batches.
Layout empty_layout(TokenCounts counts) {
    counts.validate();
    Layout layout;
    layout.counts = std::move(counts);
    layout.first_run.push_back(0);
    return layout;
}

// Places a number of sequences of each size, longest first, each in the first batch with enough
// room. `groups` has the existing batches.
void first_fit(Layout& layout, std::span<const std::int64_t> sequences, Groups& groups) {
    const std::vector<std::int64_t>& sizes = layout.counts.tokens;
    const std::int64_t budget = layout.limits().max_tokens_per_batch;
    const std::int64_t max_sequences = layout.limits().max_sequences_per_batch;
    // Most sizes have one or a few runs.
    layout.runs.reserve(2 * sizes.size());
    layout.first_run.reserve(sizes.size() + 1);
    for (std::size_t size = 0; size < sizes.size(); ++size) {
        const std::int64_t tokens = sizes[size];
        const std::int64_t count = sequences[size];
        groups.advance_to(size);
        for (std::int64_t placed = 0; placed < count;) {
            const std::int64_t left = count - placed;
            const auto fit_in = [&](std::int64_t free_tokens, std::int64_t num_sequences) {
                // Any number of sequences without tokens fits. Dividing is slow, and most batches
                // have room for one sequence.
                const std::int64_t fit = tokens == 0                      ? left
                                         : free_tokens - tokens >= tokens ? free_tokens / tokens
                                                                          : 1;
                return std::min(fit, max_sequences - num_sequences);
            };
            Group group{};
            if (groups.has_open()) {
                group = groups.pop();
            } else {
                const std::int64_t fit = fit_in(budget, 0);
                const std::int64_t num_batches = left <= fit ? 1 : ceil_divide(left, fit);
                group = {layout.num_batches, num_batches, budget, 0};
                layout.num_batches += group.num_batches;
            }
            const std::int64_t fit = fit_in(group.free_tokens, group.num_sequences);
            const auto fill = [&](std::int64_t num_batches, std::int64_t per_batch) {
                if (num_batches == 0) {
                    return;
                }
                if (per_batch > 0) {
                    layout.runs.push_back(
                        {placed, group.first_batch, num_batches, per_batch, group.num_sequences});
                    placed += num_batches * per_batch;
                }
                groups.put({group.first_batch, num_batches, group.free_tokens - per_batch * tokens,
                            group.num_sequences + per_batch});
                group.first_batch += num_batches;
                group.num_batches -= num_batches;
            };
            const std::int64_t most = left < fit ? 0 : group.num_batches == 1 ? 1 : left / fit;
            const std::int64_t full = std::min(group.num_batches, most);
            fill(full, fit);
            if (group.num_batches > 0) {
                // Those that do not fill a batch, since not all batches are full.
                const std::int64_t rest = left - full * fit;
                fill(rest > 0 ? 1 : 0, rest);
                fill(group.num_batches, 0);
            }
        }
        layout.first_run.push_back(layout.runs.size());
    }
}

// A pattern and its number of batches.
using Filled = std::pair<Pattern, std::int64_t>;

// Returns the batches of a layout, in which a batch may have several runs of one size.
std::vector<Filled> filled_batches(const Layout& layout) {
    std::vector<Filled> batches;
    std::vector<Part> room;
    Stretches(layout).walk(0, layout.num_batches, room,
                           [&](std::int64_t first, std::int64_t last, auto parts) {
                               Pattern pattern;
                               for (const Part& part : parts) {
                                   if (pattern.empty() || pattern.back().size != part.size) {
                                       pattern.push_back({part.size, 0});
                                   }
                                   pattern.back().sequences += part.run->per_batch;
                               }
                               batches.emplace_back(std::move(pattern), last - first);
                           });
    return batches;
}

// Orders patterns by longest sequence, then by decreasing number of those.
bool comes_before(const Filled& a, const Filled& b) {
    return std::ranges::lexicographical_compare(
        a.first, b.first, [](const PatternPart& one, const PatternPart& other) {
            return std::pair(one.size, -one.sequences) < std::pair(other.size, -other.sequences);
        });
}

}  // namespace

Layout first_fit_decreasing(TokenCounts counts) {
    Layout layout = empty_layout(std::move(counts));
    Groups groups(layout.counts.tokens, layout.limits().max_sequences_per_batch);
    first_fit(layout, layout.counts.sequences, groups);
    return layout;
}

Layout layout_from_patterns(TokenCounts counts, std::span<const Pattern> patterns,
                            std::span<const std::int64_t> num_batches) {
    Layout layout = empty_layout(std::move(counts));
    const Limits limits = layout.limits();
    const std::vector<std::int64_t>& sizes = layout.counts.tokens;
    const auto require = [](bool holds, const char* what) {
        if (!holds) {
            throw std::invalid_argument(std::string("invalid patterns: ") + what);
        }
    };
    require(patterns.size() == num_batches.size(),
            "there must be one number of batches per pattern");
    std::vector<std::int64_t> left = layout.counts.sequences;
    std::vector<std::vector<Run>> runs(sizes.size());
    Layout rest = layout;
    Groups groups(sizes, limits.max_sequences_per_batch);
    for (std::size_t i = 0; i < patterns.size(); ++i) {
        require(!patterns[i].empty() && num_batches[i] >= 1, "a pattern is empty");
        Group group{rest.num_batches, num_batches[i], limits.max_tokens_per_batch, 0};
        std::size_t least_size = 0;
        for (const auto& [size, sequences] : patterns[i]) {
            require(size >= least_size && size < sizes.size() && sequences >= 1,
                    "sizes are out of order");
            least_size = size + 1;
            require(sequences <= left[size] / num_batches[i],
                    "there are fewer sequences of a size than needed");
            require(sequences <= limits.max_sequences_per_batch - group.num_sequences,
                    "a batch has too many sequences");
            require(sizes[size] == 0 || sequences <= group.free_tokens / sizes[size],
                    "a batch has too many tokens");
            left[size] -= sequences * num_batches[i];
            runs[size].push_back({0, group.first_batch, group.num_batches, sequences, 0});
            group.num_sequences += sequences;
            group.free_tokens -= sequences * sizes[size];
        }
        groups.put(group);
        rest.num_batches += num_batches[i];
    }
    first_fit(rest, left, groups);
    for (std::size_t size = 0; size < sizes.size(); ++size) {
        const auto more = rest.runs_of(size);
        runs[size].insert(runs[size].end(), more.begin(), more.end());
    }
    rest.runs.clear();
    rest.first_run.assign(1, 0);
    for (const std::vector<Run>& of_size : runs) {
        rest.runs.insert(rest.runs.end(), of_size.begin(), of_size.end());
        rest.first_run.push_back(rest.runs.size());
    }

    std::vector<Filled> batches = filled_batches(rest);
    std::ranges::stable_sort(batches, comes_before);
    for (std::vector<Run>& of_size : runs) {
        of_size.clear();
    }
    for (const auto& [pattern, number] : batches) {
        std::int64_t slot = 0;
        for (const auto& [size, sequences] : pattern) {
            const std::int64_t before = runs[size].empty() ? 0
                                                           : runs[size].back().first_sequence +
                                                                 runs[size].back().num_batches *
                                                                     runs[size].back().per_batch;
            runs[size].push_back({before, layout.num_batches, number, sequences, slot});
            slot += sequences;
        }
        layout.num_batches += number;
    }
    for (const std::vector<Run>& of_size : runs) {
        layout.runs.insert(layout.runs.end(), of_size.begin(), of_size.end());
        layout.first_run.push_back(layout.runs.size());
    }
    layout.validate();
    return layout;
}

std::pair<std::vector<Pattern>, std::vector<std::int64_t>> patterns_of(const Layout& layout) {
    std::pair<std::vector<Pattern>, std::vector<std::int64_t>> found;
    std::vector<Filled> batches = filled_batches(layout);
    std::ranges::stable_sort(batches, comes_before);
    for (auto& [pattern, number] : batches) {
        if (!found.first.empty() && found.first.back() == pattern) {
            found.second.back() += number;
        } else {
            found.first.push_back(std::move(pattern));
            found.second.push_back(number);
        }
    }
    return found;
}

Layout with_bound(Layout layout, std::int64_t proven_bound) {
    if (proven_bound < 0 || proven_bound > layout.num_batches) {
        throw std::invalid_argument("the bound exceeds the number of batches");
    }
    layout.proven_bound = proven_bound;
    return layout;
}

std::int64_t lower_bound(const Layout& layout) {
    const std::vector<std::int64_t>& sizes = layout.counts.tokens;
    const std::vector<std::int64_t>& sequences = layout.counts.sequences;
    const std::int64_t budget = layout.limits().max_tokens_per_batch;
    const std::int64_t total = layout.counts.num_sequences();

    // No two sequences above half the budget share a batch. Those of at most `budget - threshold`
    // tokens leave room for sequences from `threshold` to half the budget.
    std::size_t half = 0;
    std::int64_t num_large = 0;
    for (; half < sizes.size() && sizes[half] > budget / 2; ++half) {
        num_large += sequences[half];
    }
    std::int64_t bound = num_large;
    std::int64_t small_tokens = 0;
    std::int64_t room = 0;
    std::size_t large = half;
    for (std::size_t size = half; size < sizes.size(); ++size) {
        const std::int64_t threshold = sizes[size];
        small_tokens += threshold * sequences[size];
        for (; large > 0 && sizes[large - 1] <= budget - threshold; --large) {
            room += (budget - sizes[large - 1]) * sequences[large - 1];
        }
        if (small_tokens > room) {
            bound = std::max(bound, num_large + ceil_divide(small_tokens - room, budget));
        }
    }
    return std::max(
        {bound, ceil_divide(total, layout.limits().max_sequences_per_batch), layout.proven_bound});
}

Stretches::Stretches(const Layout& layout) {
    starts_.reserve(layout.runs.size());
    for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
        for (const Run& run : layout.runs_of(size)) {
            starts_.push_back({size, &run});
        }
    }
    std::ranges::stable_sort(starts_, {}, [](const Part& part) { return part.run->first_batch; });
}

void Layout::validate() const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) {
            throw std::invalid_argument(std::string("inconsistent layout: ") + what);
        }
    };
    counts.validate();
    const std::size_t num_sizes = counts.tokens.size();
    require(first_run.size() == num_sizes + 1 && first_run.front() == 0 &&
                first_run.back() == runs.size() && std::ranges::is_sorted(first_run),
            "runs do not match sizes");
    require(num_batches >= 0 && num_batches <= counts.num_sequences(), "a batch is empty");
    require(proven_bound >= 0 && proven_bound <= num_batches, "the proven bound is out of range");
    for (std::size_t size = 0; size < num_sizes; ++size) {
        std::int64_t sequences = 0;
        std::int64_t batches = 0;
        for (const Run& run : runs_of(size)) {
            require(run.num_batches >= 1 && run.per_batch >= 1, "a run is empty");
            require(run.first_sequence == sequences, "a sequence is missing");
            require(run.first_batch >= batches && run.first_batch < num_batches &&
                        run.num_batches <= num_batches - run.first_batch,
                    "a run is out of place");
            require(run.per_batch <= (counts.sequences[size] - sequences) / run.num_batches,
                    "a sequence has two slots");
            sequences += run.num_batches * run.per_batch;
            batches = run.first_batch + run.num_batches;
        }
        require(sequences == counts.sequences[size], "a sequence is missing");
    }
    std::vector<Part> room;
    Stretches(*this).walk(0, num_batches, room, [&](std::int64_t, std::int64_t, auto parts) {
        std::int64_t sequences = 0;
        std::int64_t tokens = 0;
        for (const Part& part : parts) {
            require(part.run->first_slot == sequences, "a slot is out of place");
            sequences += part.run->per_batch;
            tokens += counts.tokens[part.size] * part.run->per_batch;
        }
        require(sequences >= 1, "a batch is empty");
        require(sequences <= limits().max_sequences_per_batch, "a batch has too many sequences");
        require(tokens <= limits().max_tokens_per_batch, "a batch has too many tokens");
    });
}

}  // namespace packing
