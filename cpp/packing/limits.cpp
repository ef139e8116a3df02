#include "packing/limits.hpp"

#include <stdexcept>

namespace packing {

void Limits::validate() const {
    if (max_tokens_per_batch < 1 || max_tokens_per_batch > max_tokens || special_tokens < 0 ||
        special_tokens >= max_tokens_per_batch || max_sequence_length < 1 ||
        max_sequences_per_batch < 1) {
        throw std::invalid_argument("limits are out of range or have no room for one residue");
    }
}

}  // namespace packing
