#include "packing/pricing.hpp"

#include <algorithm>
#include <stdexcept>

#include "packing/checked.hpp"

namespace packing {

namespace {

// 2^53: integers below are exact in a double.
constexpr double max_exact = 9007199254740992.0;

// Sequences of one size that are added together, once or any number of times.
struct Piece {
    std::size_t size;
    std::int64_t sequences;
    bool is_repeated;
};

// Returns the maximum number of sequences of a size in a batch.
std::int64_t max_per_batch(std::int64_t tokens, std::int64_t sequences, const Limits& limits) {
    return std::min(
        {sequences, limits.max_tokens_per_batch / tokens, limits.max_sequences_per_batch});
}

// Adds the pieces of a size: one repeated piece if no batch has room for all its sequences;
// otherwise binary pieces, subsets of which sum to any number of sequences.
void add_pieces(std::vector<Piece>& pieces, std::size_t size, std::int64_t sequences,
                std::int64_t max_sequences) {
    if (max_sequences < sequences) {
        pieces.push_back({size, 1, true});
        return;
    }
    for (std::int64_t taken = 1; max_sequences > 0; taken = std::min(2 * taken, max_sequences)) {
        pieces.push_back({size, taken, false});
        max_sequences -= taken;
    }
}

// Returns the limit on sequences, or 0 if no batch can exceed it.
std::int64_t binding_limit(const TokenCounts& counts) {
    const std::int64_t budget = counts.limits.max_tokens_per_batch;
    const std::int64_t max_sequences = counts.limits.max_sequences_per_batch;
    std::int64_t smallest = budget;
    for (const std::int64_t tokens : counts.tokens) {
        smallest = tokens > 0 ? std::min(smallest, tokens) : smallest;
    }
    const std::int64_t largest_batch =
        std::min(budget / std::max<std::int64_t>(smallest, 1), counts.num_sequences());
    return largest_batch <= max_sequences ? 0 : max_sequences;
}

std::vector<Piece> make_pieces(const TokenCounts& counts, std::size_t first_size) {
    std::vector<Piece> pieces;
    const std::size_t num_sizes = counts.tokens.size();
    for (std::size_t i = 0; i < num_sizes; ++i) {
        const std::size_t size = (first_size % num_sizes + i) % num_sizes;
        const std::int64_t tokens = counts.tokens[size];
        if (tokens > 0) {
            const std::int64_t sequences = counts.sequences[size];
            add_pieces(pieces, size, sequences, max_per_batch(tokens, sequences, counts.limits));
        }
    }
    return pieces;
}

// The largest value of a batch for each number of tokens and, if limited, of sequences. Values are
// integers stored as doubles, which the compiler can compare two at a time.
class Table {
  public:
    Table(std::int64_t budget, std::int64_t max_sequences)
        : width_(static_cast<std::size_t>(budget) + 1),
          last_row_(static_cast<std::size_t>(max_sequences)),
          best_(width_ * (last_row_ + 1), 0.0) {}

    std::size_t num_states() const { return best_.size(); }
    double best_value() const { return best_.back(); }

    // Updates the table with a piece; is_taken[state] is set if the best batch of a state has it.
    void consider(const Piece& piece, std::size_t tokens, double value,
                  std::span<std::uint8_t> is_taken) {
        std::ranges::fill(is_taken, std::uint8_t{0});
        if (tokens >= width_) {
            return;
        }
        const auto improve = [&](const double* from, std::size_t state, std::size_t length) {
            double* const to = best_.data() + state;
            std::uint8_t* const taken = is_taken.data() + state;
            for (std::size_t i = 0; i < length; ++i) {
                const double with = from[i] + value;
                taken[i] = with > to[i];
                to[i] = with > to[i] ? with : to[i];
            }
        };
        if (last_row_ > 0) {
            const auto rows = static_cast<std::size_t>(piece.sequences);
            for (std::size_t i = rows; i <= last_row_; ++i) {
                const std::size_t row = piece.is_repeated ? i : last_row_ + rows - i;
                const double* const from = best_.data() + (row - rows) * width_;
                improve(from, row * width_ + tokens, width_ - tokens);
            }
        } else if (piece.is_repeated) {
            // Ranges of `tokens` states do not overlap the states they are computed from.
            for (std::size_t state = tokens; state < width_; state += tokens) {
                improve(best_.data() + state - tokens, state, std::min(tokens, width_ - state));
            }
        } else {
            before_ = best_;
            improve(before_.data(), tokens, width_ - tokens);
        }
    }

    // Returns the state before a piece was added.
    std::size_t without(const Piece& piece, std::size_t tokens, std::size_t state) const {
        return state - tokens -
               (last_row_ > 0 ? static_cast<std::size_t>(piece.sequences) * width_ : 0);
    }

  private:
    std::size_t width_;
    std::size_t last_row_;
    std::vector<double> best_;
    std::vector<double> before_;
};

}  // namespace

std::int64_t pricing_steps(const TokenCounts& counts) {
    counts.limits.validate();
    const auto pieces = make_pieces(counts, 0);
    constexpr const char* what = "the number of steps";
    const std::int64_t states =
        checked_multiply(checked_add(counts.limits.max_tokens_per_batch, 1, what),
                         checked_add(binding_limit(counts), 1, what), what);
    return checked_multiply(states, static_cast<std::int64_t>(pieces.size()), what);
}

Pricing price_patterns(const TokenCounts& counts, std::span<const std::int64_t> duals,
                       std::size_t first_size, std::size_t max_patterns) {
    if (duals.size() != counts.tokens.size()) {
        throw std::invalid_argument("there must be one dual value per size");
    }
    // Throws if the size of the table overflows.
    pricing_steps(counts);
    std::vector<Piece> pieces = make_pieces(counts, first_size);
    std::erase_if(pieces, [&](const Piece& piece) { return duals[piece.size] <= 0; });
    if (pieces.empty()) {
        return {0, {}};
    }
    Table table(counts.limits.max_tokens_per_batch, binding_limit(counts));
    const std::size_t num_states = table.num_states();
    std::vector<std::uint8_t> is_taken(pieces.size() * num_states);
    const auto tokens_of = [&](const Piece& piece) {
        return static_cast<std::size_t>(counts.tokens[piece.size] * piece.sequences);
    };
    // The pieces that improved the best batch.
    std::vector<std::size_t> improving;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const double before = table.best_value();
        const double value =
            static_cast<double>(duals[pieces[i].size]) * static_cast<double>(pieces[i].sequences);
        table.consider(pieces[i], tokens_of(pieces[i]), value,
                       std::span(is_taken).subspan(i * num_states, num_states));
        if (table.best_value() > before) {
            improving.push_back(i);
        }
        if (table.best_value() >= max_exact) {
            throw std::overflow_error("the value of a batch does not fit in 53 bits");
        }
    }
    Pricing pricing{static_cast<std::int64_t>(table.best_value()), {}};
    while (!improving.empty() && pricing.patterns.size() < max_patterns) {
        std::vector<std::int64_t> sequences(counts.tokens.size());
        std::size_t state = num_states - 1;
        for (std::size_t i = improving.back() + 1; i-- > 0;) {
            const Piece& piece = pieces[i];
            while (is_taken[i * num_states + state] != 0) {
                sequences[piece.size] += piece.sequences;
                state = table.without(piece, tokens_of(piece), state);
                if (!piece.is_repeated) {
                    break;
                }
            }
        }
        improving.pop_back();
        Pattern& pattern = pricing.patterns.emplace_back();
        for (std::size_t size = 0; size < sequences.size(); ++size) {
            if (sequences[size] > 0) {
                pattern.push_back({size, sequences[size]});
            }
        }
    }
    return pricing;
}

}  // namespace packing
