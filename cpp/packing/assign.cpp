#include "packing/assign.hpp"

#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "packing/histogram.hpp"
#include "packing/parallel.hpp"

namespace packing {

namespace {

constexpr const char* changed = "lengths changed while they were being assigned";

// The next place of a size. Kept small, so that the cursors of all sizes stay in the L1 cache.
struct Cursor {
    std::int64_t batch = 0;
    std::int64_t end_batch = 0;      // end of the run
    std::int64_t left_in_batch = 0;  // at least 1 before the end of the run
    std::int64_t per_batch = 0;
};

// Assigns the places of each size in order.
class Cursors {
  public:
    Cursors() = default;
    Cursors(const Layout& layout, const Bins& bins, std::span<const std::int64_t> before)
        : cursors_(bins.size()), runs_(bins.size()) {
        for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
            const std::size_t bin = bins.of_size(size);
            start(bin, layout.runs_of(size), before[bin]);
        }
    }

    // Returns the next place of a size in `number`, or false if all are taken.
    template <Place place>
    bool next(std::size_t bin, std::int64_t& number) {
        Cursor& cursor = cursors_[bin];
        if (cursor.batch == cursor.end_batch && !start_run(bin)) {
            return false;
        }
        if constexpr (place == Place::batch) {
            number = cursor.batch;
        } else {
            const Run& run = *(runs_[bin].next - 1);
            number = run.first_slot + run.per_batch - cursor.left_in_batch;
        }
        // Branch-free, since the end of a batch is hard to predict.
        const std::int64_t left = cursor.left_in_batch - 1;
        const std::int64_t is_full = left == 0 ? 1 : 0;
        cursor.batch += is_full;
        cursor.left_in_batch = left + (cursor.per_batch & -is_full);
        return true;
    }

  private:
    struct Runs {
        const Run* next = nullptr;
        const Run* end = nullptr;
    };

    // Starts at the place of sequence number `sequence` of a size.
    void start(std::size_t bin, std::span<const Run> runs, std::int64_t sequence) {
        const auto after = std::ranges::upper_bound(runs, sequence, {}, &Run::first_sequence);
        const Run* const run = runs.data() + (after - runs.begin()) - 1;
        runs_[bin] = {run, runs.data() + runs.size()};
        start_run(bin);
        const std::int64_t in_run = sequence - run->first_sequence;
        cursors_[bin].batch += in_run / run->per_batch;
        cursors_[bin].left_in_batch -= in_run % run->per_batch;
    }

    bool start_run(std::size_t bin) {
        Runs& runs = runs_[bin];
        if (runs.next == runs.end) {
            return false;
        }
        const Run& run = *runs.next++;
        cursors_[bin] = {run.first_batch, run.first_batch + run.num_batches, run.per_batch,
                         run.per_batch};
        return true;
    }

    std::vector<Cursor> cursors_;
    std::vector<Runs> runs_;
};

// Returns the number of sequences in `before` of each size of the layout.
std::vector<std::int64_t> counted_before(const Layout& layout, const TokenCounts& before) {
    const TokenCounts& counts = layout.counts;
    if (!before.limits.same_tokens(counts.limits)) {
        throw std::invalid_argument("`before` and the layout were made with different limits");
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

// Replaces the counts of each part by the number of sequences of each size before the part, given
// those before the first part. Leaves the totals in `before`.
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
    if (std::cmp_not_equal(num_counted, histogram.num_lengths())) {
        throw std::invalid_argument("lengths have a size that the layout does not have");
    }
}

[[noreturn]] void throw_mismatch(const Layout& layout, std::size_t size, std::int64_t found) {
    throw std::invalid_argument("`lengths` and `before` together have " + std::to_string(found) +
                                " sequences of " + std::to_string(layout.counts.tokens[size]) +
                                " tokens (the layout has " +
                                std::to_string(layout.counts.sequences[size]) + ")");
}

}  // namespace

template <class Length, class Number>
void assign(const Layout& layout, std::span<const Length> lengths, const TokenCounts& before,
            Place place, std::span<Number> out, Threads threads) {
    const std::size_t num_sizes = layout.counts.tokens.size();
    if (out.size() != lengths.size()) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    if (layout.counts.num_sequences() > std::numeric_limits<Number>::max()) {
        throw std::overflow_error("the type of `out` is too narrow for the layout");
    }
    const Bins bins(layout.counts, lengths.size());
    Histogram histogram(lengths.size(), bins.size(), threads);
    bins.visit([&](auto bin_of) { histogram.add_all(lengths, bin_of); });
    std::vector<std::int64_t> counted = counted_before(layout, before);
    accumulate(histogram, bins, counted);
    for (std::size_t size = 0; size < num_sizes; ++size) {
        if (counted[size] > layout.counts.sequences[size]) {
            throw_mismatch(layout, size, counted[size]);
        }
    }

    std::vector<Cursors> cursors;
    cursors.reserve(static_cast<std::size_t>(histogram.num_parts()));
    for (int part = 0; part < histogram.num_parts(); ++part) {
        cursors.emplace_back(layout, bins, histogram.counts(part));
    }
    std::atomic<bool> failed = false;
    const auto assign_places = [&]<Place which>(auto bin_of) {
        parallel_for(histogram.num_parts(), [&, bin_of, lengths, out](int part) noexcept {
            Cursors mine = std::move(cursors[static_cast<std::size_t>(part)]);
            const auto [begin, end] = histogram.rows(part);
            for (std::size_t row = begin; row < end; ++row) {
                std::int64_t number = 0;
                if (!mine.template next<which>(bin_of(read_once(lengths[row])), number)) {
                    failed = true;
                    return;
                }
                out[row] = static_cast<Number>(number);
            }
        });
    };
    bins.visit([&](auto bin_of) {
        if (place == Place::batch) {
            assign_places.template operator()<Place::batch>(bin_of);
        } else {
            assign_places.template operator()<Place::slot>(bin_of);
        }
    });
    if (failed) {
        throw std::invalid_argument(changed);
    }
}

namespace {

// Groups rows by size, largest first, and in row order within a size. `begins` has the start of
// each part's rows of a size, `starts` the start of each size.
template <class Length, class Item, class MakeItem>
void group_by_size(std::span<const Length> lengths, const Bins& bins, const Histogram& begins,
                   std::span<const std::int64_t> starts, std::span<Item> grouped,
                   const MakeItem& make_item) {
    Histogram positions = begins;
    std::atomic<bool> failed = false;
    bins.visit([&](auto bin_of) {
        parallel_for(positions.num_parts(), [&, bin_of, lengths, grouped](int part) noexcept {
            std::int64_t* const position = positions.counts(part).data();
            const auto [begin, end] = positions.rows(part);
            for (std::size_t row = begin; row < end; ++row) {
                const auto to =
                    static_cast<std::size_t>(position[bin_of(read_once(lengths[row]))]++);
                if (to >= grouped.size()) {
                    failed = true;
                    return;
                }
                grouped[to] = make_item(row);
            }
        });
    });
    // Each row was written once if each part ends where the next one begins.
    for (int part = 0; part < positions.num_parts(); ++part) {
        for (std::size_t size = 0; size + 1 < starts.size(); ++size) {
            const std::size_t bin = bins.of_size(size);
            const std::int64_t end =
                part + 1 < positions.num_parts() ? begins.counts(part + 1)[bin] : starts[size + 1];
            if (failed || positions.counts(part)[bin] != end) {
                throw std::invalid_argument(changed);
            }
        }
    }
}

// Returns the start of each size when rows are grouped by size, and the end.
std::vector<std::int64_t> starts_of_sizes(const TokenCounts& counts) {
    std::vector<std::int64_t> starts(counts.tokens.size() + 1);
    std::inclusive_scan(counts.sequences.begin(), counts.sequences.end(), starts.begin() + 1);
    return starts;
}

// Calls move(grouped, slot, n) for each range of n slots of one size in a batch. `slot` is its
// start in order of batches, and `grouped` its start when rows are grouped by size.
template <class Move>
void move_rows(const Layout& layout, std::span<const std::int64_t> starts,
               std::span<const std::int64_t> offsets, Threads threads, const Move& move) {
    const auto num_rows = static_cast<std::size_t>(offsets.back());
    const int parts = num_parts(num_rows, threads);
    const auto move_batch = [&](std::size_t size, const Run& run, std::int64_t batch,
                                std::int64_t slot) noexcept {
        move(starts[size] + run.first_sequence + (batch - run.first_batch) * run.per_batch, slot,
             run.per_batch);
    };
    if (num_rows <= 65536) {
        // Slots few enough for the cache are filled in order of sizes, without sorting the runs.
        for (std::size_t size = 0; size < layout.counts.tokens.size(); ++size) {
            for (const Run& run : layout.runs_of(size)) {
                for (std::int64_t i = 0; i < run.num_batches; ++i) {
                    const std::int64_t batch = run.first_batch + i;
                    move_batch(size, run, batch,
                               offsets[static_cast<std::size_t>(batch)] + run.first_slot);
                }
            }
        }
        return;
    }
    const Stretches stretches(layout);
    std::vector<std::vector<Part>> rooms(static_cast<std::size_t>(parts));
    for (std::vector<Part>& room : rooms) {
        room.reserve(layout.counts.tokens.size());
    }
    parallel_for(parts, [&](int part) noexcept {
        // The batches whose first row is in this part.
        const auto [begin, end] = part_of(num_rows, parts, part);
        const auto batch_at = [&](std::size_t row) {
            return std::ranges::lower_bound(offsets, static_cast<std::int64_t>(row)) -
                   offsets.begin();
        };
        const std::int64_t first_batch = batch_at(begin);
        const std::int64_t last_batch = batch_at(end);
        std::int64_t slot = offsets[static_cast<std::size_t>(first_batch)];
        stretches.walk(first_batch, last_batch, rooms[static_cast<std::size_t>(part)],
                       [&](std::int64_t first, std::int64_t last, std::span<const Part> filled) {
                           for (std::int64_t batch = first; batch < last; ++batch) {
                               for (const Part& from : filled) {
                                   move_batch(from.size, *from.run, batch, slot);
                                   slot += from.run->per_batch;
                               }
                           }
                       });
    });
}

// Writes rows grouped by size to the slots of the layout.
template <class Item, class Row, class RowOf>
void fill_batches(const Layout& layout, std::span<const std::int64_t> starts,
                  std::span<const Item> grouped, const RowOf& row_of,
                  std::span<const std::int64_t> offsets, std::span<Row> out, Threads threads) {
    move_rows(layout, starts, offsets, threads,
              [&](std::int64_t from, std::int64_t slot, std::int64_t n) noexcept {
                  std::transform(grouped.data() + from, grouped.data() + from + n,
                                 out.data() + slot, row_of);
              });
}

// The random number generator SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom
// Number Generators, 2014).
class SplitMix64 {
  public:
    explicit SplitMix64(std::uint64_t seed) : state_(seed) {}

    std::uint64_t operator()() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    // Returns a number below `end`: the upper half of the product of a draw and `end`. The counts
    // of any two results over all 2^64 draws differ by at most 1.
    std::uint64_t below(std::uint64_t end) {
        const std::uint64_t x = (*this)();
        const std::uint64_t low = (x & 0xffffffff) * (end & 0xffffffff);
        const std::uint64_t middle = (x >> 32) * (end & 0xffffffff) + (low >> 32);
        const std::uint64_t other = (x & 0xffffffff) * (end >> 32) + (middle & 0xffffffff);
        return (x >> 32) * (end >> 32) + (middle >> 32) + (other >> 32);
    }

  private:
    std::uint64_t state_;
};

}  // namespace

template <class Length, class Row>
void list_rows(const Layout& layout, std::span<const Length> lengths, const Ids& ids,
               std::span<Row> scratch, std::span<Row> out, std::span<std::int64_t> offsets,
               Threads threads) {
    const std::size_t num_sizes = layout.counts.tokens.size();
    const std::size_t num_rows = lengths.size();
    const bool by_id = !std::holds_alternative<std::monostate>(ids);
    if (out.size() != num_rows || (!by_id && scratch.size() != num_rows) ||
        offsets.size() != static_cast<std::size_t>(layout.num_batches) + 1) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    if (num_rows > static_cast<std::uint64_t>(std::numeric_limits<Row>::max())) {
        throw std::overflow_error("the type of `out` is too narrow for the number of rows");
    }
    const Bins bins(layout.counts, num_rows);
    Histogram begins(num_rows, bins.size(), threads);
    bins.visit([&](auto bin_of) { begins.add_all(lengths, bin_of); });

    const std::vector<std::int64_t> starts = starts_of_sizes(layout.counts);
    std::vector<std::int64_t> ends(starts.begin(), starts.end() - 1);
    accumulate(begins, bins, ends);
    for (std::size_t size = 0; size < num_sizes; ++size) {
        if (ends[size] != starts[size + 1]) {
            throw_mismatch(layout, size, ends[size] - starts[size]);
        }
    }

    batch_offsets(layout, offsets);
    if (!by_id) {
        group_by_size(lengths, bins, begins, starts, scratch,
                      [](std::size_t row) { return static_cast<Row>(row); });
        fill_batches(layout, starts, std::span<const Row>(scratch), std::identity{}, offsets, out,
                     threads);
        return;
    }
    const IdOrder order(ids, num_rows, threads);
    std::vector<KeyedRow> keyed(num_rows);
    group_by_size(lengths, bins, begins, starts, std::span(keyed),
                  [&](std::size_t row) { return order.keyed(row); });
    std::atomic<std::size_t> next_size = 0;
    parallel_for(num_parts(num_rows, threads), [&](int) noexcept {
        for (std::size_t size = next_size++; size < num_sizes; size = next_size++) {
            const auto begin = static_cast<std::size_t>(starts[size]);
            const auto end = static_cast<std::size_t>(starts[size + 1]);
            order.sort(std::span(keyed).subspan(begin, end - begin));
        }
    });
    fill_batches(
        layout, starts, std::span<const KeyedRow>(keyed),
        [](const KeyedRow& keyed_row) { return static_cast<Row>(keyed_row.row); }, offsets, out,
        threads);
}

template <class Row>
void shuffle_rows(const Layout& layout, std::span<const Row> rows, std::uint64_t seed,
                  std::span<Row> scratch, std::span<Row> out, Threads threads) {
    const auto num_rows = static_cast<std::size_t>(layout.counts.num_sequences());
    if (rows.size() != num_rows || scratch.size() != num_rows || out.size() != num_rows) {
        throw std::invalid_argument("a buffer has the wrong size");
    }
    const std::vector<std::int64_t> starts = starts_of_sizes(layout.counts);
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(layout.num_batches) + 1);
    batch_offsets(layout, offsets);
    move_rows(layout, starts, offsets, threads,
              [&](std::int64_t to, std::int64_t slot, std::int64_t n) noexcept {
                  std::copy_n(rows.data() + slot, n, scratch.data() + to);
              });
    // Each size has its own generator, so the result does not depend on the thread.
    std::atomic<std::size_t> next_size = 0;
    parallel_for(num_parts(num_rows, threads), [&](int) noexcept {
        for (std::size_t size = next_size++; size + 1 < starts.size(); size = next_size++) {
            SplitMix64 random(SplitMix64(SplitMix64(seed)() + size)());
            Row* const first = scratch.data() + starts[size];
            for (std::int64_t left = starts[size + 1] - starts[size]; left > 1; --left) {
                std::swap(first[left - 1], first[random.below(static_cast<std::uint64_t>(left))]);
            }
        }
    });
    fill_batches(layout, starts, std::span<const Row>(scratch), std::identity{}, offsets, out,
                 threads);
}
template void shuffle_rows(const Layout&, std::span<const std::int32_t>, std::uint64_t,
                           std::span<std::int32_t>, std::span<std::int32_t>, Threads);
template void shuffle_rows(const Layout&, std::span<const std::int64_t>, std::uint64_t,
                           std::span<std::int64_t>, std::span<std::int64_t>, Threads);

#define INSTANTIATE_NUMBER(Length, Number)                                                         \
    template void assign(const Layout&, std::span<const Length>, const TokenCounts&, Place,        \
                         std::span<Number>, Threads);                                              \
    template void list_rows(const Layout&, std::span<const Length>, const Ids&, std::span<Number>, \
                            std::span<Number>, std::span<std::int64_t>, Threads);
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
