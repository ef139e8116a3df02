// Fuzzes fields of counts, layouts and patterns, as pickles and callers may bring them: what is
// accepted holds every sequence once and exceeds no limit, whatever is done with it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "packing/checked.hpp"
#include "packing/pricing.hpp"
#include "tests/bytes.hpp"
#include "tests/cases.hpp"

using namespace packing;

namespace {

Case read_case(Bytes& bytes) {
    Case at;
    at.limits.special_tokens = bytes.below(3);
    at.limits.multiple_of = bytes.below(2) == 0 ? 1 : 1 + bytes.below(20);
    at.limits.max_tokens_per_batch =
        ceil_divide(at.limits.special_tokens + 1, at.limits.multiple_of) * at.limits.multiple_of +
        bytes.below(200);
    at.limits.max_sequence_length = 1 + bytes.below(at.room());
    at.limits.max_sequences_per_batch = bytes.below(2) == 0 ? unlimited : 1 + bytes.below(8);
    at.lengths.resize(static_cast<std::size_t>(bytes.below(60)));
    for (std::int64_t& length : at.lengths) {
        length = bytes.below(210);
    }
    return at;
}

// Puts numbers of the fuzzer's into fields of its choice.
void spoil(Layout& layout, Bytes& bytes) {
    const auto some = [&](std::size_t size) {
        return static_cast<std::size_t>(bytes.below(static_cast<std::int64_t>(size)));
    };
    TokenCounts& counts = layout.counts;
    Limits& limits = counts.limits;
    std::int64_t* const values[] = {&limits.max_tokens_per_batch, &limits.max_sequences_per_batch,
                                    &layout.num_batches,          &layout.proven_bound,
                                    &limits.max_sequence_length,  &limits.special_tokens,
                                    &counts.num_truncated,        &counts.truncated_residues,
                                    &limits.multiple_of,          &counts.padding_tokens};
    for (std::int64_t changes = bytes.below(6); changes > 0; --changes) {
        switch (bytes.below(9)) {
            case 0:
                *values[some(std::size(values))] = bytes.any();
                break;
            case 1:
                if (!counts.tokens.empty()) {
                    counts.tokens[some(counts.tokens.size())] = bytes.any();
                }
                break;
            case 2:
                if (!counts.sequences.empty()) {
                    counts.sequences[some(counts.sequences.size())] = bytes.any();
                }
                break;
            case 3:
                counts.tokens.push_back(bytes.any());
                counts.sequences.push_back(bytes.any());
                break;
            case 4:
                layout.first_run[some(layout.first_run.size())] =
                    static_cast<std::size_t>(bytes.any());
                break;
            case 5:
                layout.runs.push_back(
                    {bytes.any(), bytes.any(), bytes.any(), bytes.any(), bytes.any()});
                break;
            case 6:
                layout.first_run.push_back(layout.runs.size());
                break;
            default:
                if (!layout.runs.empty()) {
                    Run& run = layout.runs[some(layout.runs.size())];
                    std::int64_t* const fields[] = {&run.first_sequence, &run.first_batch,
                                                    &run.num_batches, &run.per_batch,
                                                    &run.first_slot};
                    *fields[some(std::size(fields))] += bytes.below(2) == 0 ? 1 : bytes.any() / 2;
                }
        }
    }
}

// Uses an accepted layout in every way.
void use(Layout layout) {
    // The lengths made below are the largest of each size, of sequences after they were truncated.
    layout.counts.num_truncated = layout.counts.truncated_residues = 0;
    Case at;
    at.limits = layout.limits();
    const std::int64_t bound = lower_bound(layout);
    if (bound > layout.num_batches) {
        fail(at, "the lower bound is above the number of batches");
    }
    patterns_of(layout);
    if (layout.counts.num_sequences() > 10'000) {
        return;
    }
    for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
        const std::int64_t longest = layout.counts.tokens[size] - at.limits.special_tokens;
        at.lengths.insert(at.lengths.end(), static_cast<std::size_t>(layout.counts.sequences[size]),
                          std::min(longest, layout.limits().max_residues()));
    }
    layout.counts.padding_tokens = 0;
    for (const std::int64_t length : at.lengths) {
        layout.counts.padding_tokens += at.tokens(length) - at.real_tokens(length);
    }
    const std::vector<Rows> batches = list(at, layout, Ids{});
    Rows tokens(batches.size());
    batch_tokens(layout, tokens);
    Rows times(at.lengths.size());
    for (std::size_t batch = 0; batch < batches.size(); ++batch) {
        std::int64_t sum = 0;
        for (const std::int64_t row : batches[batch]) {
            ++times[static_cast<std::size_t>(row)];
            sum += at.tokens(at.lengths[static_cast<std::size_t>(row)]);
        }
        if (sum != tokens[batch] || sum > at.limits.max_tokens_per_batch ||
            batches[batch].empty() ||
            static_cast<std::int64_t>(batches[batch].size()) > at.limits.max_sequences_per_batch) {
            fail(at, "a batch of an accepted layout is wrong");
        }
    }
    if (std::ranges::any_of(times, [](std::int64_t n) { return n != 1; })) {
        fail(at, "an accepted layout loses a row, or has it twice");
    }
    std::mt19937_64 random(1);
    check_places(at, layout, batches, random);
}

void spoil_patterns(const Layout& layout, Bytes& bytes) {
    auto [patterns, num_batches] = patterns_of(layout);
    for (std::int64_t changes = bytes.below(4); changes > 0; --changes) {
        const auto i = static_cast<std::size_t>(bytes.below(64));
        if (i >= patterns.size()) {
            patterns.push_back({{static_cast<std::size_t>(bytes.any()), bytes.any()},
                                {static_cast<std::size_t>(bytes.any()), bytes.any()}});
            num_batches.push_back(bytes.any());
        } else if (patterns[i].empty()) {
            num_batches.push_back(1);
        } else if (bytes.below(2) == 0) {
            num_batches[i] = bytes.any();
        } else {
            PatternPart& part =
                patterns[i][static_cast<std::size_t>(bytes.below(64)) % patterns[i].size()];
            part = {static_cast<std::size_t>(bytes.any()), bytes.any()};
        }
    }
    try {
        use(layout_from_patterns(layout.counts, patterns, num_batches));
    } catch (const std::invalid_argument&) {
        // Refused.
    }
}

void price(const Layout& layout, Bytes& bytes) {
    const auto limit_or = [&](std::int64_t usual) {
        return bytes.below(4) == 0 ? bytes.any() : usual;
    };
    TokenCounts counts = layout.counts;
    counts.limits.max_tokens_per_batch = limit_or(layout.limits().max_tokens_per_batch);
    counts.limits.max_sequences_per_batch = limit_or(layout.limits().max_sequences_per_batch);
    Rows values(counts.tokens.size());
    for (std::int64_t& value : values) {
        value = bytes.any();
    }
    try {
        if (pricing_steps(counts) > 1 << 20) {
            return;
        }
        price_patterns(counts, values, static_cast<std::size_t>(bytes.any()),
                       static_cast<std::size_t>(bytes.below(4)));
    } catch (const std::invalid_argument&) {
        // Refused.
    } catch (const std::overflow_error&) {
        // Refused.
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const std::int64_t what = bytes.below(3);
    Layout layout = lay_out(read_case(bytes));
    if (what == 0) {
        spoil_patterns(layout, bytes);
        return 0;
    }
    if (what == 1) {
        price(layout, bytes);
        return 0;
    }
    spoil(layout, bytes);
    try {
        layout.validate();
    } catch (const std::invalid_argument&) {
        return 0;
    } catch (const std::overflow_error&) {
        return 0;
    }
    use(layout);
    return 0;
}
