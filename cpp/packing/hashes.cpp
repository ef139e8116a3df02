#include "packing/hashes.hpp"

#include <bit>
#include <cstddef>
#include <cstring>

namespace packing {
namespace {

// The finalizer of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number
// Generators, 2014).
std::uint64_t mix(std::uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

// Returns up to eight bytes as a number, the first as the lowest.
std::uint64_t load(const unsigned char* bytes, std::size_t size) {
    std::uint64_t value = 0;
    if (size == sizeof value && std::endian::native == std::endian::little) {
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }
    for (std::size_t i = 0; i < size; ++i) {
        value |= std::uint64_t{bytes[i]} << (8 * i);
    }
    return value;
}

std::uint64_t hash(const Text& text) {
    const auto* bytes = static_cast<const unsigned char*>(text.data());
    std::size_t size = text.length() * text.width();
    std::uint64_t value = mix(size + 0x9e3779b97f4a7c15);
    for (; size > 8; size -= 8, bytes += 8) {
        value = mix(value ^ load(bytes, 8));
    }
    return mix(value ^ load(bytes, size));
}

}  // namespace

void hash_texts(std::span<const Text> texts, std::span<std::uint64_t> hashes) {
    for (std::size_t i = 0; i < texts.size(); ++i) {
        hashes[i] = hash(texts[i]);
    }
}

}  // namespace packing
