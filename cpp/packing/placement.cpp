#include "packing/placement.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <stdexcept>

namespace packing {

namespace {

// The free tokens of batches, of which the first that has enough is found in O(log batches).
class Rooms {
  public:
    explicit Rooms(std::size_t num_batches)
        : num_leaves_(std::bit_ceil(num_batches)), largest_(2 * num_leaves_, none) {}

    // Room of a batch that takes no more sequences, not even those without tokens.
    static constexpr std::int64_t none = -1;

    void set(std::size_t batch, std::int64_t room) {
        std::size_t node = num_leaves_ + batch;
        largest_[node] = room;
        while (node > 1) {
            node /= 2;
            largest_[node] = std::max(largest_[2 * node], largest_[2 * node + 1]);
        }
    }

    // Returns the first batch with room for a size; there must be one.
    std::size_t first_with(std::int64_t size) const {
        std::size_t node = 1;
        while (node < num_leaves_) {
            node *= 2;
            node += largest_[node] < size ? 1 : 0;
        }
        return node - num_leaves_;
    }

  private:
    std::size_t num_leaves_;
    std::vector<std::int64_t> largest_;  // of a binary tree, in which node n has 2 n and 2 n + 1
};

}  // namespace

std::vector<std::int64_t> place(std::span<const Fill> open, std::span<const std::int64_t> sizes,
                                const Limits& limits) {
    limits.validate();
    const std::int64_t budget = limits.max_tokens_per_batch;
    const std::int64_t max_sequences = limits.max_sequences_per_batch;
    const auto exceeds = [](std::int64_t number, std::int64_t limit) {
        return number < 0 || number > limit;
    };
    for (const Fill& batch : open) {
        if (exceeds(batch.tokens, budget) || exceeds(batch.sequences, max_sequences)) {
            throw std::invalid_argument("an open batch is out of range");
        }
    }
    for (const std::int64_t size : sizes) {
        if (exceeds(size, budget)) {
            throw std::invalid_argument("a size is out of range");
        }
    }
    // No sequence needs more than one new batch.
    std::vector<Fill> batches(open.begin(), open.end());
    batches.resize(open.size() + sizes.size(), Fill{0, 0});
    Rooms rooms(batches.size());
    const auto update = [&](std::size_t batch) {
        const bool is_full = batches[batch].sequences == max_sequences;
        rooms.set(batch, is_full ? Rooms::none : budget - batches[batch].tokens);
    };
    for (std::size_t batch = 0; batch < batches.size(); ++batch) {
        update(batch);
    }
    std::vector<std::int64_t> placed;
    placed.reserve(sizes.size());
    for (const std::int64_t size : sizes) {
        const std::size_t batch = rooms.first_with(size);
        batches[batch].tokens += size;
        ++batches[batch].sequences;
        update(batch);
        placed.push_back(static_cast<std::int64_t>(batch));
    }
    return placed;
}

}  // namespace packing
