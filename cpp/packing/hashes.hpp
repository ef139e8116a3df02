#pragma once

#include <cstdint>
#include <span>

#include "packing/ids.hpp"

namespace packing {

// Writes a hash of each text, equal for equal texts of one width, and the same on any machine.
void hash_texts(std::span<const Text> texts, std::span<std::uint64_t> hashes);

}  // namespace packing
