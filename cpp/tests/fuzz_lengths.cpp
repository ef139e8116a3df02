// Fuzzes lengths and parameters: the kernel packs them as the obvious algorithm does, or refuses
// them for a reason that holds.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>

#include "packing/checked.hpp"
#include "tests/bytes.hpp"
#include "tests/cases.hpp"

using namespace packing;

namespace {

Case read_case(Bytes& bytes) {
    Case at;
    const std::int64_t scales[] = {12, 256, 5000, std::int64_t{1} << 40, max_tokens - 32};
    at.limits.special_tokens = bytes.below(8);
    at.limits.multiple_of = bytes.below(2) == 0 ? 1 : 1 + bytes.below(20);
    at.limits.max_tokens_per_batch =
        ceil_divide(at.limits.special_tokens + 1, at.limits.multiple_of) * at.limits.multiple_of +
        bytes.below(scales[bytes.below(std::size(scales))]);
    const std::int64_t room = at.room();
    at.limits.max_sequence_length = bytes.below(2) == 0 ? room : 1 + bytes.below(room);
    at.limits.max_sequences_per_batch = bytes.below(3) == 0 ? 1 + bytes.below(8) : unlimited;
    // Threads take long to start.
    at.threads = {bytes.below(16) == 15 ? 3 : 1, 1};
    const std::int64_t kind = bytes.below(3);
    while (!bytes.empty() && at.lengths.size() < 200) {
        at.lengths.push_back(kind == 0   ? bytes.any()
                             : kind == 1 ? static_cast<std::int64_t>(bytes.number(1))
                                         : static_cast<std::int64_t>(bytes.number(2)));
    }
    return at;
}

// Whether all tokens, or all truncated residues, need more than 64 bits.
bool overflows(const Case& at) {
    std::uint64_t tokens = 0;
    std::uint64_t cut = 0;
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    for (const std::int64_t length : at.lengths) {
        tokens += static_cast<std::uint64_t>(at.tokens(length));
        cut += static_cast<std::uint64_t>(length -
                                          (at.real_tokens(length) - at.limits.special_tokens));
        if (tokens > most || cut > most) {
            return true;
        }
    }
    return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    std::mt19937_64 random(bytes.number(4));
    const Case at = read_case(bytes);
    try {
        lay_out(at);
    } catch (const std::invalid_argument&) {
        if (std::ranges::none_of(at.lengths, [](std::int64_t length) { return length < 0; })) {
            fail(at, "refused as negative");
        }
        return 0;
    } catch (const std::overflow_error&) {
        if (!overflows(at)) {
            fail(at, "refused as too large");
        }
        return 0;
    }
    if (overflows(at)) {
        fail(at, "sums have wrapped round");
    }
    check(at, random);
    return 0;
}
