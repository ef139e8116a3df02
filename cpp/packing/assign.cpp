#include "packing/assign.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "packing/histogram.hpp"
#include "packing/parallel.hpp"

namespace packing {

namespace {

constexpr const char* changed = "lengths changed while they were being assigned";

// Hands out the places of one size, one after the other.
class Cursor {
  public:
    Cursor() = default;

    // Starts at the sequence-th of the sequences of a size.
    Cursor(std::span<const Run> runs, std::int64_t sequence) : end_(runs.data() + runs.size()) {
        const auto after = std::ranges::upper_bound(runs, sequence, {}, &Run::first_sequence);
        run_ = runs.data() + (after - runs.begin()) - 1;
        const std::int64_t in_run = sequence - run_->first_sequence;
        batch_ = run_->first_batch + in_run / run_->per_batch;
        left_ = run_->per_batch - in_run % run_->per_batch;
        if (batch_ == run_->first_batch + run_->num_batches) {
            --batch_;
            left_ = 0;
        }
    }

    // False where all places are taken.
    template <Place place>
    bool next(std::int64_t& number) {
        if (left_ == 0 && !advance()) {
            return false;
        }
        number = place == Place::batch ? batch_ : run_->first_slot + run_->per_batch - left_;
        --left_;
        return true;
    }

  private:
    bool advance() {
        if (run_ == end_) {
            return false;
        }
        ++batch_;
        if (batch_ == run_->first_batch + run_->num_batches) {
            if (++run_ == end_) {
                return false;
            }
            batch_ = run_->first_batch;
        }
        left_ = run_->per_batch;
        return true;
    }

    const Run* run_ = nullptr;
    const Run* end_ = nullptr;
    std::int64_t batch_ = 0;
    std::int64_t left_ = 0;
};

// How many sequences of each of the layout's sizes are in `before`.
std::vector<std::int64_t> counted_before(const Layout& layout, const TokenCounts& before) {
    const TokenCounts& counts = layout.counts;
    if (before.max_length != counts.max_length || before.special_tokens != counts.special_tokens) {
        throw std::invalid_argument("`before` was counted with limits other than the layout's");
    }
    std::vector<std::int64_t> result(counts.tokens.size());
    std::size_t size = 0;
    for (std::size_t i = 0; i < before.tokens.size(); ++i) {
        while (size < counts.tokens.size() && counts.tokens[size] > before.tokens[i]) {
            ++size;
        }
        if (size == counts.tokens.size() || counts.tokens[size] != before.tokens[i] ||
            counts.sequences[size] < before.sequences[i]) {
            throw std::invalid_argument("`before` has more sequences of " +
                                        std::to_string(before.tokens[i]) +
                                        " tokens than the layout");
        }
        result[size] = before.sequences[i];
    }
    return result;
}

// Counts the lengths in the bins of the layout's sizes.
template <class Length>
Histogram count_in_bins(const Bins& bins, std::span<const Length> lengths, int num_threads) {
    Histogram histogram(lengths.size(), bins.size(), num_threads);
    bins.visit([&](auto bin_of) {
        parallel_for(histogram.num_parts(),
                     [&](int part) noexcept { histogram.add(part, lengths, bin_of); });
    });
    return histogram;
}

// Turns the counts of each part into the number of sequences of each size that come before the
// part, given those before the first; leaves the totals in `before`.
void accumulate(Histogram& histogram, const Bins& bins, std::span<std::int64_t> before) {
    std::int64_t num_counted = 0;
    for (int part = 0; part < histogram.num_parts(); ++part) {
        const std::span<std::int64_t> counts = histogram.counts(part);
        for (std::size_t size = 0; size < before.size(); ++size) {
            std::int64_t& count = counts[bins.of_size(size)];
            num_counted += count;
            before[size] += std::exchange(count, before[size]);
        }
    }
    if (num_counted != static_cast<std::int64_t>(histogram.num_lengths())) {
        throw std::invalid_argument("lengths has a sequence of a size that the layout lacks");
    }
}

[[noreturn]] void throw_mismatch(const Layout& layout, std::size_t size, std::int64_t found) {
    throw std::invalid_argument("lengths and the rows before them have " + std::to_string(found) +
                                " sequences of " + std::to_string(layout.counts.tokens[size]) +
                                " tokens, the layout has " +
                                std::to_string(layout.counts.sequences[size]));
}

}  // namespace

template <class Length, class Number>
void assign(const Layout& layout, std::span<const Length> lengths, const TokenCounts& before,
            Place place, std::span<Number> out, int num_threads) {
    const std::size_t num_sizes = layout.counts.tokens.size();
    if (out.size() != lengths.size()) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    if (layout.counts.num_sequences() > std::numeric_limits<Number>::max()) {
        throw std::overflow_error("out is too narrow for the numbers of the layout");
    }
    const Bins bins(layout.counts, lengths.size());
    Histogram histogram = count_in_bins(bins, lengths, num_threads);
    std::vector<std::int64_t> counted = counted_before(layout, before);
    accumulate(histogram, bins, counted);
    for (std::size_t size = 0; size < num_sizes; ++size) {
        if (counted[size] > layout.counts.sequences[size]) {
            throw_mismatch(layout, size, counted[size]);
        }
    }

    const int parts = histogram.num_parts();
    std::vector<Cursor> cursors(static_cast<std::size_t>(parts) * bins.size());
    for (int part = 0; part < parts; ++part) {
        for (std::size_t size = 0; size < num_sizes; ++size) {
            const std::size_t bin = bins.of_size(size);
            cursors[static_cast<std::size_t>(part) * bins.size() + bin] =
                Cursor(layout.runs_of(size), histogram.counts(part)[bin]);
        }
    }
    std::atomic<bool> failed = false;
    const auto assign_parts = [&]<Place which>(auto bin_of) {
        parallel_for(parts, [&](int part) noexcept {
            Cursor* const mine = cursors.data() + static_cast<std::size_t>(part) * bins.size();
            const auto [begin, end] = histogram.rows(part);
            for (std::size_t row = begin; row < end; ++row) {
                std::int64_t number = 0;
                if (!mine[bin_of(lengths[row])].template next<which>(number)) {
                    failed = true;
                    return;
                }
                out[row] = static_cast<Number>(number);
            }
        });
    };
    bins.visit([&](auto bin_of) {
        if (place == Place::batch) {
            assign_parts.template operator()<Place::batch>(bin_of);
        } else {
            assign_parts.template operator()<Place::slot>(bin_of);
        }
    });
    if (failed) {
        throw std::invalid_argument(changed);
    }
}

namespace {

// Writes keyed or plain rows, grouped by size, to the slots of the layout.
template <class Sorted, class Row>
void fill_batches(const Layout& layout, std::span<const std::int64_t> starts, const Sorted& sorted,
                  std::span<const std::int64_t> offsets, std::span<Row> out, int num_threads) {
    const Stretches stretches(layout);
    const int parts = num_parts(out.size(), 65536, num_threads);
    std::vector<std::vector<Part>> rooms(static_cast<std::size_t>(parts));
    for (std::vector<Part>& room : rooms) {
        room.reserve(layout.counts.tokens.size());
    }
    parallel_for(parts, [&](int part) noexcept {
        // Batches whose first row is in this part.
        const auto [begin, end] = part_of(out.size(), parts, part);
        const auto batch_at = [&](std::size_t row) {
            return std::ranges::lower_bound(offsets, static_cast<std::int64_t>(row)) -
                   offsets.begin();
        };
        const std::int64_t first_batch = batch_at(begin);
        const std::int64_t last_batch = batch_at(end);
        Row* next = out.data() + offsets[static_cast<std::size_t>(first_batch)];
        stretches.walk(first_batch, last_batch, rooms[static_cast<std::size_t>(part)],
                       [&](std::int64_t first, std::int64_t last, std::span<const Part> filled) {
                           for (std::int64_t batch = first; batch < last; ++batch) {
                               for (const Part& from : filled) {
                                   const Run& run = *from.run;
                                   const std::int64_t source =
                                       starts[from.size] + run.first_sequence +
                                       (batch - run.first_batch) * run.per_batch;
                                   for (std::int64_t i = 0; i < run.per_batch; ++i) {
                                       *next++ = sorted(static_cast<std::size_t>(source + i));
                                   }
                               }
                           }
                       });
    });
}

}  // namespace

template <class Length, class Row>
void list_rows(const Layout& layout, std::span<const Length> lengths, const Ids& ids,
               std::span<Row> scratch, std::span<Row> out, std::span<std::int64_t> offsets,
               int num_threads) {
    const std::size_t num_sizes = layout.counts.tokens.size();
    const std::size_t num_rows = lengths.size();
    const bool by_id = !std::holds_alternative<std::monostate>(ids);
    if (out.size() != num_rows || (!by_id && scratch.size() != num_rows) ||
        offsets.size() != static_cast<std::size_t>(layout.num_batches) + 1) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    if (static_cast<std::int64_t>(num_rows) > std::numeric_limits<Row>::max()) {
        throw std::overflow_error("out is too narrow for the numbers of the rows");
    }
    const Bins bins(layout.counts, num_rows);
    Histogram histogram = count_in_bins(bins, lengths, num_threads);

    // Where the rows of each size start when all rows stand in order of size.
    std::vector<std::int64_t> starts(num_sizes + 1);
    for (std::size_t size = 0; size < num_sizes; ++size) {
        starts[size + 1] = starts[size] + layout.counts.sequences[size];
    }
    std::vector<std::int64_t> ends(starts.begin(), starts.end() - 1);
    accumulate(histogram, bins, ends);
    for (std::size_t size = 0; size < num_sizes; ++size) {
        if (ends[size] != starts[size + 1]) {
            throw_mismatch(layout, size, ends[size] - starts[size]);
        }
    }

    // Each part's rows of a size stand between those of the parts before and after it.
    const auto group_by_size = [&](auto* sorted, const auto& item) {
        std::atomic<bool> failed = false;
        bins.visit([&](auto bin_of) {
            parallel_for(histogram.num_parts(), [&](int part) noexcept {
                std::int64_t* const position = histogram.counts(part).data();
                const auto [begin, end] = histogram.rows(part);
                for (std::size_t row = begin; row < end; ++row) {
                    const std::int64_t to = position[bin_of(lengths[row])]++;
                    if (to >= static_cast<std::int64_t>(num_rows)) {
                        failed = true;
                        return;
                    }
                    sorted[to] = item(row);
                }
            });
        });
        const std::span<std::int64_t> last = histogram.counts(histogram.num_parts() - 1);
        for (std::size_t size = 0; size < num_sizes; ++size) {
            if (failed || last[bins.of_size(size)] != starts[size + 1]) {
                throw std::invalid_argument(changed);
            }
        }
    };

    batch_offsets(layout, offsets);
    if (!by_id) {
        group_by_size(scratch.data(), [](std::size_t row) { return static_cast<Row>(row); });
        const auto row_at = [&](std::size_t i) { return scratch[i]; };
        fill_batches(layout, starts, row_at, offsets, out, num_threads);
        return;
    }
    const IdOrder order(ids, num_rows, num_threads);
    std::vector<KeyedRow> keyed(num_rows);
    group_by_size(keyed.data(), [&](std::size_t row) { return order.keyed(row); });
    std::atomic<std::size_t> next_size = 0;
    parallel_for(num_parts(num_rows, 8192, num_threads), [&](int) noexcept {
        for (std::size_t size = next_size++; size < num_sizes; size = next_size++) {
            const auto begin = static_cast<std::size_t>(starts[size]);
            const auto end = static_cast<std::size_t>(starts[size + 1]);
            order.sort(std::span(keyed).subspan(begin, end - begin));
        }
    });
    const auto row_at = [&](std::size_t i) { return static_cast<Row>(keyed[i].row); };
    fill_batches(layout, starts, row_at, offsets, out, num_threads);
}

#define INSTANTIATE_NUMBER(Length, Number)                                                         \
    template void assign(const Layout&, std::span<const Length>, const TokenCounts&, Place,        \
                         std::span<Number>, int);                                                  \
    template void list_rows(const Layout&, std::span<const Length>, const Ids&, std::span<Number>, \
                            std::span<Number>, std::span<std::int64_t>, int);
#define INSTANTIATE(Length)                  \
    INSTANTIATE_NUMBER(Length, std::int32_t) \
    INSTANTIATE_NUMBER(Length, std::int64_t)
INSTANTIATE(std::int8_t)
INSTANTIATE(std::int16_t)
INSTANTIATE(std::int32_t)
INSTANTIATE(std::int64_t)
INSTANTIATE(std::uint8_t)
INSTANTIATE(std::uint16_t)
INSTANTIATE(std::uint32_t)
INSTANTIATE(std::uint64_t)

}  // namespace packing
