#include "packing/pricing.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "packing/checked.hpp"

namespace packing {

namespace {

// 2^53: integers below are exact in a double.
constexpr double max_exact = 9007199254740992.0;

// A number of sequences of one size that are added together, once; any number of times if repeated.
struct Piece {
    std::size_t size;  // index into counts.tokens
    std::int64_t sequences;
    std::size_t tokens;  // of all its sequences
    double value;
};

// The sizes of which a batch cannot hold all sequences, and pieces of the others.
struct Pieces {
    std::vector<Piece> repeated;
    std::vector<Piece> single;
};

// Returns the maximum number of sequences of a size in a batch.
std::int64_t max_per_batch(std::int64_t tokens, std::int64_t sequences, const Limits& limits) {
    const std::int64_t fit = tokens == 0 ? sequences : limits.max_tokens_per_batch / tokens;
    return std::min({sequences, fit, limits.max_sequences_per_batch});
}

// Returns the limit on sequences, or 0 if no batch can exceed it.
std::int64_t binding_limit(const TokenCounts& counts) {
    const std::int64_t budget = counts.limits.max_tokens_per_batch;
    const std::int64_t max_sequences = counts.limits.max_sequences_per_batch;
    const bool is_free = !counts.tokens.empty() && counts.tokens.back() == 0;
    const std::int64_t num_free = is_free ? counts.sequences.back() : 0;
    const std::size_t num_sizes = counts.tokens.size() - (is_free ? 1 : 0);
    const std::int64_t most = num_sizes == 0 ? 0 : budget / counts.tokens[num_sizes - 1];
    const std::int64_t largest_batch = num_free + std::min(most, counts.num_sequences() - num_free);
    return largest_batch <= max_sequences ? 0 : max_sequences;
}

// Returns the pieces of sizes of positive value, in an order that starts with `first_size`. Subsets
// of single pieces sum to any number of sequences up to the maximum per batch.
Pieces make_pieces(const TokenCounts& counts, std::span<const std::int64_t> duals,
                   std::size_t first_size) {
    Pieces pieces;
    const std::size_t num_sizes = counts.tokens.size();
    for (std::size_t i = 0; i < num_sizes; ++i) {
        const std::size_t size = (first_size % num_sizes + i) % num_sizes;
        const std::int64_t tokens = counts.tokens[size];
        std::int64_t most = max_per_batch(tokens, counts.sequences[size], counts.limits);
        // No batch has a size above the budget.
        if (duals[size] <= 0 || most == 0) {
            continue;
        }
        const auto make = [&](std::int64_t sequences) {
            return Piece{size, sequences, static_cast<std::size_t>(tokens * sequences),
                         static_cast<double>(duals[size]) * static_cast<double>(sequences)};
        };
        if (most < counts.sequences[size]) {
            pieces.repeated.push_back(make(1));
            continue;
        }
        for (std::int64_t taken = 1; most > 0; taken = std::min(2 * taken, most)) {
            pieces.single.push_back(make(taken));
            most -= taken;
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
    double value(std::size_t state) const { return best_[state]; }

    double best_value() const {
        if (best_.back() >= max_exact) {
            throw std::overflow_error("the value of a batch does not fit in 53 bits");
        }
        return best_.back();
    }

    // Whether a batch of a state has room for a piece.
    bool has_room(const Piece& piece, std::size_t state) const {
        return piece.tokens <= state % width_ &&
               (last_row_ == 0 || static_cast<std::size_t>(piece.sequences) <= state / width_);
    }

    // Returns the state without a piece, of a batch that has room for it.
    std::size_t without(const Piece& piece, std::size_t state) const {
        return state - piece.tokens -
               (last_row_ > 0 ? static_cast<std::size_t>(piece.sequences) * width_ : 0);
    }

    // Fills the table with repeated pieces. Row by row, so that two rows stay in the cache.
    void fill(std::span<const Piece> pieces) {
        std::fill_n(best_.begin(), width_, 0.0);
        for (std::size_t row = 1; row <= last_row_; ++row) {
            const double* const from = best_.data() + (row - 1) * width_;
            double* const to = best_.data() + row * width_;
            std::copy(from, from + width_, to);
            for (const Piece& piece : pieces) {
                improve(from, to + piece.tokens, width_ - piece.tokens, piece.value);
            }
        }
        for (std::size_t i = 0; last_row_ == 0 && i < pieces.size(); ++i) {
            // Ranges of this many states do not overlap the states they are computed from.
            const std::size_t step = pieces[i].tokens;
            for (std::size_t state = step; state < width_; state += step) {
                double* const to = best_.data() + state;
                improve(to - step, to, std::min(step, width_ - state), pieces[i].value);
            }
        }
    }

    // Updates the table with a single piece; is_taken[state] is set if the best batch of a state
    // has it.
    void consider(const Piece& piece, std::span<std::uint8_t> is_taken) {
        std::ranges::fill(is_taken, std::uint8_t{0});
        const auto improve_row = [&](const double* from, std::size_t row) {
            double* const to = best_.data() + row * width_ + piece.tokens;
            std::uint8_t* const taken = is_taken.data() + row * width_ + piece.tokens;
            for (std::size_t i = 0; i < width_ - piece.tokens; ++i) {
                const double with = from[i] + piece.value;
                taken[i] = with > to[i];
                to[i] = with > to[i] ? with : to[i];
            }
        };
        const auto rows = static_cast<std::size_t>(piece.sequences);
        for (std::size_t row = last_row_; last_row_ > 0 && row >= rows; --row) {
            improve_row(best_.data() + (row - rows) * width_, row);
        }
        if (last_row_ == 0) {
            before_ = best_;
            improve_row(before_.data(), 0);
        }
    }

  private:
    static void improve(const double* from, double* to, std::size_t length, double value) {
        for (std::size_t i = 0; i < length; ++i) {
            const double with = from[i] + value;
            to[i] = with > to[i] ? with : to[i];
        }
    }

    std::size_t width_;
    std::size_t last_row_;
    std::vector<double> best_;
    std::vector<double> before_;
};

// Adds the sequences of a best batch of repeated pieces. No record of what was taken is needed: a
// piece is in a best batch if its value is the difference to the best batch without it.
void add_repeated(const Table& table, std::span<const Piece> pieces, std::size_t state,
                  std::span<std::int64_t> sequences) {
    for (const Piece& piece : pieces) {
        while (table.has_room(piece, state) &&
               table.value(table.without(piece, state)) + piece.value == table.value(state)) {
            sequences[piece.size] += 1;
            state = table.without(piece, state);
        }
    }
}

}  // namespace

std::int64_t pricing_steps(const TokenCounts& counts) {
    counts.limits.validate();
    const std::vector<std::int64_t> duals(counts.tokens.size(), 1);
    const Pieces pieces = make_pieces(counts, duals, 0);
    constexpr const char* what = "the number of steps";
    const std::int64_t states =
        checked_multiply(checked_add(counts.limits.max_tokens_per_batch, 1, what),
                         checked_add(binding_limit(counts), 1, what), what);
    return checked_multiply(
        states, static_cast<std::int64_t>(pieces.repeated.size() + pieces.single.size()), what);
}

Pricing price_patterns(const TokenCounts& counts, std::span<const std::int64_t> duals,
                       std::size_t first_size, std::size_t max_patterns) {
    if (duals.size() != counts.tokens.size()) {
        throw std::invalid_argument("there must be one dual value per size");
    }
    // Throws if the size of the table overflows.
    pricing_steps(counts);
    const auto [repeated, single] = make_pieces(counts, duals, first_size);
    if (repeated.empty() && single.empty()) {
        return {0, {}};
    }
    Table table(counts.limits.max_tokens_per_batch, binding_limit(counts));
    table.fill(repeated);
    const Table of_repeated = single.empty() || repeated.empty() ? Table(0, 0) : table;
    const Table& base = single.empty() || repeated.empty() ? table : of_repeated;
    const std::size_t num_states = table.num_states();
    std::vector<std::uint8_t> is_taken(single.size() * num_states);
    // The pieces that improved the best batch.
    std::vector<std::size_t> improving;
    for (std::size_t i = 0; i < single.size(); ++i) {
        const double before = table.best_value();
        table.consider(single[i], std::span(is_taken).subspan(i * num_states, num_states));
        if (table.best_value() > before) {
            improving.push_back(i);
        }
    }
    Pricing pricing{static_cast<std::int64_t>(table.best_value()), {}};
    const auto add = [&](std::span<const std::int64_t> sequences) {
        Pattern& pattern = pricing.patterns.emplace_back();
        for (std::size_t size = 0; size < sequences.size(); ++size) {
            if (sequences[size] > 0) {
                pattern.push_back({size, sequences[size]});
            }
        }
    };
    // The best batch of each prefix of the single pieces.
    for (; !improving.empty() && pricing.patterns.size() < max_patterns; improving.pop_back()) {
        std::vector<std::int64_t> sequences(counts.tokens.size());
        std::size_t state = num_states - 1;
        for (std::size_t i = improving.back() + 1; i-- > 0;) {
            if (is_taken[i * num_states + state] != 0) {
                sequences[single[i].size] += single[i].sequences;
                state = table.without(single[i], state);
            }
        }
        if (!repeated.empty()) {
            add_repeated(base, repeated, state, sequences);
        }
        add(sequences);
    }
    // The best batches of repeated pieces alone: of all, of every fourth one, and so on. They have
    // other sizes, so that few rounds give all patterns that matter.
    std::vector<Piece> some;
    for (std::size_t step = 1; step <= repeated.size(); step *= 4) {
        for (std::size_t first = 0; first < step; ++first) {
            if (pricing.patterns.size() == max_patterns) {
                return pricing;
            }
            some.clear();
            for (std::size_t i = first; i < repeated.size(); i += step) {
                some.push_back(repeated[i]);
            }
            if (step > 1) {
                table.fill(some);
            }
            std::vector<std::int64_t> sequences(counts.tokens.size());
            add_repeated(step > 1 ? table : base, some, num_states - 1, sequences);
            add(sequences);
        }
    }
    return pricing;
}

}  // namespace packing
