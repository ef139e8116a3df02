#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>
#include <vector>

#include "packing/counts.hpp"
#include "packing/parallel.hpp"

namespace packing {

// Returns a length as an unsigned number; negative lengths become very large.
template <class Length>
constexpr std::uint64_t as_unsigned(Length length) {
    return static_cast<std::make_unsigned_t<Length>>(length);
}

// Reads a number exactly once, so that the value checked is the value used even if the owner
// changes it concurrently.
template <class Length>
Length read_once(const Length& length) {
    return *static_cast<const volatile Length*>(&length);
}

// One bin per length up to `last`, which also takes all longer lengths.
struct DenseBins {
    std::uint64_t last;

    template <class Length>
    std::size_t operator()(Length length) const {
        return static_cast<std::size_t>(std::min(as_unsigned(length), last));
    }
};

// The bins of a table, one entry per length; the last also holds for all longer lengths.
struct TableBins {
    std::span<const std::size_t> bins;

    template <class Length>
    std::size_t operator()(Length length) const {
        return bins[std::min<std::uint64_t>(as_unsigned(length), bins.size() - 1)];
    }
};

// One bin per counted size, and one for all other lengths.
struct SparseBins {
    std::span<const std::int64_t> tokens;  // largest first
    std::uint64_t max_residues;
    std::int64_t special_tokens;
    std::int64_t multiple_of;

    template <class Length>
    std::size_t operator()(Length length) const {
        const std::uint64_t kept = std::min(as_unsigned(length), max_residues);
        const std::int64_t least = static_cast<std::int64_t>(kept) + special_tokens;
        // Of the sizes up to this one, at most the largest is a multiple that is not too small.
        const std::int64_t most = least + (multiple_of - 1);
        const auto found = std::ranges::lower_bound(tokens, most, std::greater{});
        return found != tokens.end() && *found >= least
                   ? static_cast<std::size_t>(found - tokens.begin())
                   : tokens.size();
    }
};

// Whether a table of this many bins is small relative to the lengths.
constexpr bool use_dense_table(std::uint64_t num_bins, std::size_t num_lengths) {
    return num_bins <= 4096 || num_bins <= num_lengths;
}

// Maps lengths to the bins of counted sizes.
class Bins {
  public:
    Bins(const TokenCounts& counts, std::size_t num_lengths) : counts_(counts) {
        if (counts.tokens.empty()) {
            return;
        }
        // Lengths above the largest counted one share the bin after it.
        const Limits& limits = counts.limits;
        const std::int64_t largest = counts.tokens.front() - limits.special_tokens;
        last_ = static_cast<std::uint64_t>(std::min(largest + 1, limits.max_residues()));
        const bool is_small = use_dense_table(last_ + 1, num_lengths);
        dense_ = is_small && limits.multiple_of == 1;
        if (is_small && !dense_) {
            table_.resize(static_cast<std::size_t>(last_ + 1));
            const SparseBins bins = sparse();
            std::ranges::generate(
                table_, [&bins, length = std::uint64_t{0}]() mutable { return bins(length++); });
        }
    }

    std::size_t size() const {
        return dense_ ? static_cast<std::size_t>(last_ + 1) : counts_.tokens.size() + 1;
    }

    // Returns the bin of counts.tokens[size].
    std::size_t of_size(std::size_t size) const {
        const std::int64_t residues = counts_.tokens[size] - counts_.limits.special_tokens;
        return dense_ ? static_cast<std::size_t>(residues) : size;
    }

    // Calls loop(bin_of) with the function that maps a length to its bin.
    template <class Loop>
    void visit(const Loop& loop) const {
        if (dense_) {
            loop(DenseBins{last_});
        } else if (!table_.empty()) {
            loop(TableBins{table_});
        } else {
            loop(sparse());
        }
    }

  private:
    SparseBins sparse() const {
        const Limits& limits = counts_.limits;
        return {counts_.tokens, static_cast<std::uint64_t>(limits.max_residues()),
                limits.special_tokens, limits.multiple_of};
    }

    const TokenCounts& counts_;
    std::uint64_t last_ = 0;
    bool dense_ = false;
    std::vector<std::size_t> table_;
};

// The number of lengths in each bin, for each of several parts of the lengths.
class Histogram {
  public:
    Histogram(std::size_t num_lengths, std::size_t num_bins, Threads threads)
        : num_lengths_(num_lengths),
          num_bins_(num_bins),
          // A larger table needs more lengths to justify a thread.
          num_parts_(packing::num_parts(num_lengths,
                                        {threads.max, threads.min_part * (num_bins / 65536 + 1)})),
          // Adjacent lengths are counted in different tables, so that an increment need not wait
          // for the previous one. In a large table, adjacent lengths rarely share a bin, and few
          // lengths are counted sooner than more tables are filled and added.
          num_tables_(num_bins <= 4096 && num_lengths / 4 > num_bins ? 4 : 1),
          counts_(static_cast<std::size_t>(num_parts_) * num_tables_ * num_bins) {}

    // Counts lengths of a part.
    template <class Length, class BinOf>
    void add(int part, std::span<const Length> lengths, BinOf bin_of) {
        std::int64_t* const table = tables(part).data();
        const std::size_t step = num_tables_ == 1 ? 0 : num_bins_;
        std::size_t row = 0;
        for (; row + 4 <= lengths.size(); row += 4) {
            ++table[bin_of(read_once(lengths[row]))];
            ++table[bin_of(read_once(lengths[row + 1])) + step];
            ++table[bin_of(read_once(lengths[row + 2])) + 2 * step];
            ++table[bin_of(read_once(lengths[row + 3])) + 3 * step];
        }
        for (; row < lengths.size(); ++row) {
            ++table[bin_of(read_once(lengths[row]))];
        }
    }

    // Sums the tables of each part. Must be called before counts(part).
    void finish() {
        for (int part = 0; part < num_parts_; ++part) {
            const std::span<std::int64_t> all = tables(part);
            for (std::size_t i = num_bins_; i < all.size(); i += num_bins_) {
                const auto table = all.subspan(i, num_bins_);
                std::ranges::transform(all.first(num_bins_), table, all.begin(), std::plus{});
            }
        }
    }

    // Counts all lengths, each part on its own thread.
    template <class Length, class BinOf>
    void add_all(std::span<const Length> lengths, BinOf bin_of) {
        parallel_for(num_parts_, [&](int part) noexcept {
            const auto [begin, end] = rows(part);
            add(part, lengths.subspan(begin, end - begin), bin_of);
        });
        finish();
    }

    std::size_t num_lengths() const { return num_lengths_; }
    int num_parts() const { return num_parts_; }

    std::pair<std::size_t, std::size_t> rows(int part) const {
        return part_of(num_lengths_, num_parts_, part);
    }

    // Returns the number of lengths of a part in each bin.
    std::span<std::int64_t> counts(int part) { return tables(part).first(num_bins_); }
    std::span<const std::int64_t> counts(int part) const {
        return std::span(counts_).subspan(static_cast<std::size_t>(part) * num_tables_ * num_bins_,
                                          num_bins_);
    }

  private:
    std::span<std::int64_t> tables(int part) {
        const std::size_t size = num_tables_ * num_bins_;
        return std::span(counts_).subspan(static_cast<std::size_t>(part) * size, size);
    }

    std::size_t num_lengths_;
    std::size_t num_bins_;
    int num_parts_;
    std::size_t num_tables_;
    std::vector<std::int64_t> counts_;
};

}  // namespace packing
