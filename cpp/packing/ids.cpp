#include "packing/ids.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

#include "packing/parallel.hpp"

namespace packing {

namespace {

// Calls use(points) with the code points of a text.
template <class Use>
auto with_points(const Text& text, const Use& use) {
    const std::size_t length = text.length();
    switch (text.width()) {
        case 1:
            return use(std::span(static_cast<const std::uint8_t*>(text.data()), length));
        case 2:
            return use(std::span(static_cast<const std::uint16_t*>(text.data()), length));
        default:
            return use(std::span(static_cast<const std::uint32_t*>(text.data()), length));
    }
}

// Returns the length of the prefix of at most `length` code points that two texts share.
std::size_t shared_prefix(const Text& a, const Text& b, std::size_t length) {
    return with_points(a, [&](auto points_a) {
        return with_points(b, [&](auto points_b) {
            const std::size_t shorter = std::min({length, points_a.size(), points_b.size()});
            const auto differ =
                std::ranges::mismatch(points_a.first(shorter), points_b.first(shorter));
            return static_cast<std::size_t>(differ.in1 - points_a.begin());
        });
    });
}

// Returns a bound on the code points of a text; those of one byte each are not read.
std::uint32_t largest_point(const Text& text) {
    if (text.width() == 1 || text.length() == 0) {
        return 0xff;
    }
    return with_points(text, [](auto points) { return std::uint32_t{std::ranges::max(points)}; });
}

// How many times tied texts get a key of the code points that follow, before they are compared.
constexpr int max_keys = 8;

}  // namespace

IdOrder::IdOrder(const Ids& ids, std::size_t num_rows, Threads threads) {
    if (const auto* numbers = std::get_if<std::span<const std::int64_t>>(&ids)) {
        numbers_ = *numbers;
    }
    if (const auto* texts = std::get_if<std::span<const Text>>(&ids)) {
        texts_ = *texts;
    }
    if (numbers_.size() + texts_.size() != num_rows) {
        throw std::invalid_argument("ids and rows differ in number");
    }
    if (texts_.empty()) {
        return;
    }
    const int parts = num_parts(texts_.size(), threads);
    std::vector<std::size_t> prefixes(static_cast<std::size_t>(parts));
    std::vector<std::uint32_t> largest(static_cast<std::size_t>(parts));
    parallel_for(parts, [&](int part) noexcept {
        const auto [begin, end] = part_of(texts_.size(), parts, part);
        std::size_t prefix = texts_.front().length();
        std::uint32_t point = 0xff;
        for (const Text& text : texts_.subspan(begin, end - begin)) {
            prefix = shared_prefix(text, texts_.front(), prefix);
            point = std::max(point, largest_point(text));
        }
        prefixes[static_cast<std::size_t>(part)] = prefix;
        largest[static_cast<std::size_t>(part)] = point;
    });
    prefix_ = std::ranges::min(prefixes);
    bits_ = static_cast<unsigned>(std::bit_width(std::ranges::max(largest)));
    points_ = (64 - count_bits) / bits_;
}

KeyedRow IdOrder::keyed(std::size_t row) const { return keyed(row, prefix_); }

KeyedRow IdOrder::keyed(std::size_t row, std::size_t from) const {
    const auto number = static_cast<std::int64_t>(row);
    if (!numbers_.empty()) {
        // Flip the sign bit, so that negative numbers sort first.
        return {static_cast<std::uint64_t>(numbers_[row]) ^ (std::uint64_t{1} << 63), number};
    }
    return with_points(texts_[row], [&](auto points) {
        // A text may have changed, and be shorter than it was.
        const auto rest = points.subspan(std::min(from, points.size()));
        std::uint64_t key = 0;
        if (sizeof(rest[0]) == 1 && bits_ == 8 && rest.size() >= 8) {
            // Compilers load all eight bytes at once.
            for (std::size_t i = 0; i < 8; ++i) {
                key = key << 8 | rest[i];
            }
            key >>= 8;
        } else if (rest.size() >= points_) {
            for (std::size_t i = 0; i < points_; ++i) {
                key = key << bits_ | rest[i];
            }
        } else {
            for (const std::uint64_t point : rest) {
                key = key << bits_ | point;
            }
            key <<= bits_ * (points_ - rest.size());
        }
        // Of texts that differ only in NULs at the end, the shorter comes first.
        const std::uint64_t count = std::min<std::size_t>(rest.size(), points_ + 1);
        return KeyedRow{key << count_bits | count, number};
    });
}

bool IdOrder::less(const KeyedRow& a, const KeyedRow& b, std::size_t from) const {
    return with_points(texts_[static_cast<std::size_t>(a.row)], [&](auto points_a) {
        return with_points(texts_[static_cast<std::size_t>(b.row)], [&](auto points_b) {
            const std::size_t same = std::min({from, points_a.size(), points_b.size()});
            const auto rest_a = points_a.subspan(same);
            const auto rest_b = points_b.subspan(same);
            const auto differ = std::ranges::mismatch(rest_a, rest_b);
            if (differ.in1 == rest_a.end() || differ.in2 == rest_b.end()) {
                return rest_a.size() != rest_b.size() ? rest_a.size() < rest_b.size()
                                                      : a.row < b.row;
            }
            return std::uint32_t{*differ.in1} < std::uint32_t{*differ.in2};
        });
    });
}

void IdOrder::sort(std::span<KeyedRow> rows) const { sort(rows, prefix_, max_keys); }

void IdOrder::sort(std::span<KeyedRow> rows, std::size_t from, int keys_left) const {
    if (rows.size() < 2) {
        return;
    }
    std::ranges::sort(rows);
    if (texts_.empty()) {
        return;
    }
    from += points_;
    for (auto first = rows.begin(); first != rows.end();) {
        const std::uint64_t key = first->key;
        const auto last =
            std::find_if(first, rows.end(), [&](const KeyedRow& row) { return row.key != key; });
        const std::span tied(first, last);
        first = last;
        // Texts of equal key that end within it are equal, and already in row order.
        const std::uint64_t count = key & ((std::uint64_t{1} << count_bits) - 1);
        if (tied.size() == 1 || count <= points_) {
            continue;
        }
        if (keys_left > 0) {
            for (KeyedRow& row : tied) {
                row = keyed(static_cast<std::size_t>(row.row), from);
            }
            sort(tied, from, keys_left - 1);
            continue;
        }
        // Unlike std::sort, these stay within bounds if the texts change during the sort.
        const auto before = [&](const KeyedRow& a, const KeyedRow& b) { return less(a, b, from); };
        std::ranges::make_heap(tied, before);
        std::ranges::sort_heap(tied, before);
    }
}

}  // namespace packing
