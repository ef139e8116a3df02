#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

namespace packing {

// The maximum number of threads, and the minimum number of items that justifies a thread.
struct Threads {
    Threads(int max_threads, std::size_t min_items = 65536)
        : max(max_threads), min_part(min_items) {}

    int max;
    std::size_t min_part;
};

// The number of parts to split `num_items` into: one per thread, none smaller than `min_part`.
inline int num_parts(std::size_t num_items, Threads threads) {
    const std::size_t max_parts = std::max<std::size_t>(1, num_items / threads.min_part);
    return static_cast<int>(
        std::min(max_parts, static_cast<std::size_t>(std::max(1, threads.max))));
}

// Returns the range [first, second) of the items in a part.
inline std::pair<std::size_t, std::size_t> part_of(std::size_t num_items, int num_parts, int part) {
    const auto parts = static_cast<std::size_t>(num_parts);
    const auto p = static_cast<std::size_t>(part);
    const auto begin = [&](std::size_t i) {
        return num_items / parts * i + std::min(i, num_items % parts);
    };
    return {begin(p), begin(p + 1)};
}

// Calls call(run, part) for each part, each on its own thread.
inline void run_parts(int num_parts, void (*call)(const void*, int) noexcept, const void* run) {
    std::vector<std::thread> threads;
    int part = 1;
    try {
        threads.reserve(static_cast<std::size_t>(num_parts));
        for (; part < num_parts; ++part) {
            threads.emplace_back(call, run, part);
        }
    } catch (const std::exception&) {
        // No more threads are available: run the remaining parts here.
        for (; part < num_parts; ++part) {
            call(run, part);
        }
    }
    call(run, 0);
    for (std::thread& thread : threads) {
        thread.join();
    }
}

// Calls run(part) for each part, each on its own thread. `run` must not throw.
template <class Run>
void parallel_for(int num_parts, const Run& run) {
    static_assert(noexcept(run(0)));
    // A std::thread made here would be compiled anew for each `run`, which takes minutes in all.
    const auto call = [](const void* shared, int part) noexcept {
        // A copy, as writing to the output cannot change what it holds.
        const Run own = *static_cast<const Run*>(shared);
        own(part);
    };
    run_parts(num_parts, call, &run);
}

}  // namespace packing
