// What the kernel refuses, and with which message.

#pragma once

#include <functional>
#include <string>

#include "tests/cases.hpp"

namespace packing {

// Stops the program unless a call throws an error whose message contains a text.
template <class Error>
void expect_error(const char* what, const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        if (std::string(error.what()).find(what) != std::string::npos) {
            return;
        }
        fail({}, std::string("expected \"") + what + "\", got \"" + error.what() + "\"");
    }
    fail({}, std::string("no error: ") + what);
}

// Lengths, limits, counts and buffers that contradict each other.
void check_errors();
void check_more_errors();

// Counts and layouts with one field changed.
void check_forgeries();

void check_bad_patterns();

void check_bad_coarse_patterns();

void check_bad_placement();

// Pairs of sizes and numbers of sequences, and sequences that a layout does not have.
void check_bad_pairs_and_ranks();

}  // namespace packing
