#include "packing/ids.hpp"

#include <algorithm>
#include <bit>
#include <limits>
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

// The prefix and the range of code points of all texts.
struct Alphabet {
    std::size_t prefix =
        std::numeric_limits<std::size_t>::max();  // length shared with the first text
    std::uint32_t smallest = std::numeric_limits<std::uint32_t>::max();
    std::uint32_t largest = 0;

    void add(const Alphabet& other) {
        prefix = std::min(prefix, other.prefix);
        smallest = std::min(smallest, other.smallest);
        largest = std::max(largest, other.largest);
    }

    void add(const Text& text, const Text& first) {
        with_points(text, [&](auto points) {
            for (const std::uint32_t point : points) {
                smallest = std::min(smallest, point);
                largest = std::max(largest, point);
            }
            with_points(first, [&](auto others) {
                const auto same = points.first(std::min({prefix, points.size(), others.size()}));
                const auto differ = std::ranges::mismatch(same, others.first(same.size()));
                prefix = static_cast<std::size_t>(differ.in1 - same.begin());
            });
        });
    }
};

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
    std::vector<Alphabet> alphabets(static_cast<std::size_t>(parts));
    parallel_for(parts, [&](int part) noexcept {
        const auto [begin, end] = part_of(texts_.size(), parts, part);
        Alphabet mine;
        for (const Text& text : texts_.subspan(begin, end - begin)) {
            mine.add(text, texts_.front());
        }
        alphabets[static_cast<std::size_t>(part)] = mine;
    });
    Alphabet all;
    for (const Alphabet& mine : alphabets) {
        all.add(mine);
    }
    prefix_ = all.prefix;
    smallest_ = all.smallest;
    // One value more than there are code points, for the end of a text.
    const std::uint64_t values =
        all.largest < all.smallest ? 1 : std::uint64_t{all.largest} - all.smallest + 1;
    bits_ = static_cast<unsigned>(std::bit_width(values));
    points_ = 64 / bits_;
}

KeyedRow IdOrder::keyed(std::size_t row) const {
    const auto number = static_cast<std::int64_t>(row);
    if (!numbers_.empty()) {
        // Flip the sign bit, so that negative numbers sort first.
        return {static_cast<std::uint64_t>(numbers_[row]) ^ (std::uint64_t{1} << 63), number};
    }
    return with_points(texts_[row], [&](auto points) {
        std::uint64_t key = 0;
        for (std::size_t i = prefix_; i < prefix_ + points_; ++i) {
            const std::uint64_t above =
                i < points.size() ? std::uint64_t{points[i]} - smallest_ + 1 : 0;
            key = key << bits_ | above;
        }
        return KeyedRow{key, number};
    });
}

bool IdOrder::less(const KeyedRow& a, const KeyedRow& b) const {
    return with_points(texts_[static_cast<std::size_t>(a.row)], [&](auto points_a) {
        return with_points(texts_[static_cast<std::size_t>(b.row)], [&](auto points_b) {
            const std::size_t same =
                std::min({prefix_ + points_, points_a.size(), points_b.size()});
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

void IdOrder::sort(std::span<KeyedRow> rows) const {
    std::ranges::sort(rows);
    if (texts_.empty()) {
        return;
    }
    const std::uint64_t last_point = (std::uint64_t{1} << bits_) - 1;
    for (auto first = rows.begin(); first != rows.end();) {
        const std::uint64_t key = first->key;
        const auto last =
            std::find_if(first, rows.end(), [&](const KeyedRow& row) { return row.key != key; });
        // Texts of equal key that end within it are equal, and already in row order.
        if (last - first > 1 && (key & last_point) != 0) {
            // Unlike std::sort, these stay within bounds if the texts change during the sort.
            const auto before = [this](const KeyedRow& a, const KeyedRow& b) { return less(a, b); };
            std::make_heap(first, last, before);
            std::sort_heap(first, last, before);
        }
        first = last;
    }
}

}  // namespace packing
