#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace packing {

// Numbers made of a fuzzer's bytes; zeros after their end.
class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

    bool empty() const { return left_.empty(); }

    // A number of so many bytes.
    std::uint64_t number(std::size_t width) {
        std::uint64_t value = 0;
        const std::size_t taken = std::min(width, left_.size());
        for (const std::uint8_t byte : left_.first(taken)) {
            value = value << 8 | byte;
        }
        left_ = left_.subspan(taken);
        return value;
    }

    // A number below `end`.
    std::int64_t below(std::int64_t end) {
        const std::size_t width = end <= 1 << 8 ? 1 : end <= 1 << 16 ? 2 : 8;
        return static_cast<std::int64_t>(number(width) % static_cast<std::uint64_t>(end));
    }

    // A number of any size, small ones and those near the limits of types among them.
    std::int64_t any() {
        const std::int64_t kind = below(4);
        if (kind == 0) {
            return static_cast<std::int64_t>(number(8));
        }
        if (kind == 1) {
            const auto power = std::uint64_t{1} << below(64);
            return static_cast<std::int64_t>(power + number(1) - 128);
        }
        return kind == 2 ? below(1 << 16) : below(1 << 8) - 8;
    }

  private:
    std::span<const std::uint8_t> left_;
};

}  // namespace packing
