// The kernel beside the obvious algorithm.

#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"

namespace packing {

using Rows = std::vector<std::int64_t>;

// Lengths to pack, and how.
struct Case {
    Limits limits;
    Threads threads = 1;
    Rows lengths;

    // By the definition, not by the kernel's own functions.
    std::int64_t room() const {
        return limits.max_tokens_per_batch / limits.multiple_of * limits.multiple_of -
               limits.special_tokens;
    }
    std::int64_t real_tokens(std::int64_t length) const {
        return std::min({length, limits.max_sequence_length, room()}) + limits.special_tokens;
    }
    std::int64_t tokens(std::int64_t length) const {
        const std::int64_t excess = real_tokens(length) % limits.multiple_of;
        return real_tokens(length) + (excess == 0 ? 0 : limits.multiple_of - excess);
    }
};

// Prints what is wrong with a case and stops the program.
[[noreturn]] void fail(const Case& at, const std::string& what);

// A random case; of `in_parts` such, one is cut into parts for each thread, however small it is.
Case random_case(std::mt19937_64& random, std::uint64_t in_parts);

Layout lay_out(const Case& at);

// The rows of each batch.
std::vector<Rows> list(const Case& at, const Layout& layout, const Ids& ids);

// Stops the program unless rows get the places that `expected` tells, in two pieces of random size.
void check_places(const Case& at, const Layout& layout, const std::vector<Rows>& expected,
                  std::mt19937_64& random);

// Stops the program unless layouts of patterns, patterns of layouts, and the most valuable batches
// are those of the obvious algorithms. Patterns are random.
void check_patterns(const Case& at, const Layout& layout, std::mt19937_64& random);

// Stops the program unless patterns with reservation, joint sizes and the batches like theirs are
// those of the obvious algorithms. Limits, joint sizes and patterns are random.
void check_reservation(const Case& at, const TokenCounts& counts, std::mt19937_64& random);

// Stops the program unless sequences are placed in open batches as the obvious algorithm places
// them. Open batches and the order of sequences are random.
void check_placement(const Case& at, std::mt19937_64& random);

// Stops the program unless everything the kernel makes of a case is what the obvious algorithm
// makes of it. IDs, pieces and patterns are random.
void check(const Case& at, std::mt19937_64& random);

}  // namespace packing
