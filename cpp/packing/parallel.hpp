#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

namespace packing {

// The most threads to use, each for at least so many items: fewer are not worth a thread.
struct Threads {
    Threads(int most_threads, std::size_t least_items = 65536)
        : most(most_threads), least_part(least_items) {}

    int most;
    std::size_t least_part;
};

// The number of parts to split `num_items` into: one per thread, none smaller than `least_part`.
inline int num_parts(std::size_t num_items, Threads threads) {
    const std::size_t most = std::max<std::size_t>(1, num_items / threads.least_part);
    return static_cast<int>(std::min(most, static_cast<std::size_t>(std::max(1, threads.most))));
}

// Items [first, second) of `num_items` that belong to a part.
inline std::pair<std::size_t, std::size_t> part_of(std::size_t num_items, int num_parts, int part) {
    const auto parts = static_cast<std::size_t>(num_parts);
    const auto p = static_cast<std::size_t>(part);
    const auto begin = [&](std::size_t i) {
        return num_items / parts * i + std::min(i, num_items % parts);
    };
    return {begin(p), begin(p + 1)};
}

// Calls run(part) for each part, each on a thread of its own. `run` must not throw.
template <class Run>
void parallel_for(int num_parts, const Run& run) {
    static_assert(noexcept(run(0)));
    std::vector<std::thread> threads;
    int part = 1;
    try {
        threads.reserve(static_cast<std::size_t>(num_parts));
        for (; part < num_parts; ++part) {
            threads.emplace_back(run, part);
        }
    } catch (const std::exception&) {
        // No further thread can be had: this one does what is left.
        for (; part < num_parts; ++part) {
            run(part);
        }
    }
    run(0);
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace packing
