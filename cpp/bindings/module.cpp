#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/made.hpp"
#include "bindings/records.hpp"
#include "bindings/scanner.hpp"
#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
#include "packing/knapsack.hpp"
#include "packing/layout.hpp"

namespace py = pybind11;
using namespace packing;

namespace {

// What a span needs: one dimension, no gaps, aligned, native byte order.
void require_plain(const py::array& array, const char* name) {
    const auto address = reinterpret_cast<std::uintptr_t>(array.data());
    const char order = array.dtype().byteorder();
    if (array.ndim() != 1 || (array.flags() & py::array::c_style) == 0 ||
        address % static_cast<std::size_t>(array.dtype().alignment()) != 0 || order == '<' ||
        order == '>') {
        throw py::type_error(std::string(name) + " must be a plain one-dimensional array");
    }
}

template <class Number>
std::span<const Number> view(const py::array& array) {
    return {static_cast<const Number*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <class Number>
std::span<Number> mutable_view(py::array& array) {
    return {static_cast<Number*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

// Calls use(lengths) with a span of the array's own integer type.
template <class Use>
auto with_lengths(const py::array& lengths, const Use& use) {
    require_plain(lengths, "lengths");
    const bool is_signed = lengths.dtype().kind() == 'i';
    if (is_signed || lengths.dtype().kind() == 'u') {
        switch (lengths.itemsize()) {
            case 1:
                return is_signed ? use(view<std::int8_t>(lengths))
                                 : use(view<std::uint8_t>(lengths));
            case 2:
                return is_signed ? use(view<std::int16_t>(lengths))
                                 : use(view<std::uint16_t>(lengths));
            case 4:
                return is_signed ? use(view<std::int32_t>(lengths))
                                 : use(view<std::uint32_t>(lengths));
            case 8:
                return is_signed ? use(view<std::int64_t>(lengths))
                                 : use(view<std::uint64_t>(lengths));
        }
    }
    throw py::type_error("lengths must be integers");
}

// Calls use(number) with a number of the type that the array holds.
template <class Use>
void with_number(const py::array& array, const char* name, const Use& use) {
    require_plain(array, name);
    if (array.dtype().kind() == 'i' && array.itemsize() == 4) {
        use(std::int32_t{});
    } else if (array.dtype().kind() == 'i' && array.itemsize() == 8) {
        use(std::int64_t{});
    } else {
        throw py::type_error(std::string(name) + " must be int32 or int64");
    }
}

// The texts of a tuple of str; they live as long as the tuple.
std::vector<Text> texts_of(const py::tuple& ids) {
    std::vector<Text> texts;
    texts.reserve(ids.size());
    for (const py::handle& id : ids) {
        if (!PyUnicode_Check(id.ptr())) {
            throw py::type_error("ids must be str");
        }
#if PY_VERSION_HEX < 0x030C0000
        if (PyUnicode_READY(id.ptr()) != 0) {
            throw py::error_already_set();
        }
#endif
        texts.emplace_back(PyUnicode_DATA(id.ptr()),
                           static_cast<std::uint64_t>(PyUnicode_GET_LENGTH(id.ptr())),
                           static_cast<unsigned>(PyUnicode_KIND(id.ptr())));
    }
    return texts;
}

// The texts of a fixed-width array, without the NULs that fill them up.
std::vector<Text> texts_of(const py::array& ids) {
    const auto width = static_cast<std::size_t>(ids.itemsize()) / sizeof(Py_UCS4);
    const auto* text = static_cast<const Py_UCS4*>(ids.data());
    std::vector<Text> texts(static_cast<std::size_t>(ids.size()));
    for (Text& to : texts) {
        std::size_t length = width;
        while (length > 0 && text[length - 1] == 0) {
            --length;
        }
        to = Text(text, length, 4);
        text += width;
    }
    return texts;
}

// The texts that lie end to end in UTF-8, whose order by bytes is that by code points; text i
// is between offsets[i] and offsets[i + 1].
std::vector<Text> texts_of(const py::array& offsets, const py::array& bytes) {
    require_plain(offsets, "offsets of ids");
    require_plain(bytes, "bytes of ids");
    if (offsets.dtype().kind() != 'i' || offsets.itemsize() != 8 || offsets.size() == 0 ||
        bytes.itemsize() != 1) {
        throw py::type_error("ids must be int64 offsets and bytes");
    }
    const std::span ends = view<std::int64_t>(offsets);
    const auto* const first = static_cast<const std::uint8_t*>(bytes.data());
    std::vector<Text> texts;
    texts.reserve(ends.size() - 1);
    for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
        const std::int64_t begin = ends[i];
        const std::int64_t end = ends[i + 1];
        if (begin < 0 || begin > end || end > bytes.size()) {
            throw py::value_error("an offset of ids is out of range");
        }
        texts.emplace_back(first + begin, static_cast<std::uint64_t>(end - begin), 1U);
    }
    return texts;
}

// Calls use(ids) with None, a tuple of str, a pair of offsets and UTF-8, or an array of int64 or
// fixed-width strings.
template <class Use>
void with_ids(const py::object& ids, const Use& use) {
    if (ids.is_none()) {
        use(Ids{});
        return;
    }
    const auto* const pair = ids.ptr();
    if (PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
        py::isinstance<py::array>(PyTuple_GET_ITEM(pair, 0))) {
        const auto [offsets, bytes] = py::cast<std::pair<py::array, py::array>>(ids);
        const std::vector<Text> texts = texts_of(offsets, bytes);
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    if (py::isinstance<py::tuple>(ids)) {
        const std::vector<Text> texts = texts_of(py::reinterpret_borrow<py::tuple>(ids));
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    const auto array = py::cast<py::array>(ids);
    require_plain(array, "ids");
    if (array.dtype().kind() == 'U') {
        const std::vector<Text> texts = texts_of(array);
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    if (array.dtype().kind() != 'i' || array.itemsize() != 8) {
        throw py::type_error("ids must be int64");
    }
    use(Ids{view<std::int64_t>(array)});
}

using Int64Array = py::array_t<std::int64_t, py::array::c_style>;

py::array_t<std::int64_t> to_array(std::span<const std::int64_t> values) {
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::vector<std::int64_t> to_vector(const Int64Array& array) {
    require_plain(array, "a field");
    return {array.data(), array.data() + array.size()};
}

TokenCounts make_counts(std::int64_t max_length, std::int64_t special_tokens,
                        const Int64Array& tokens, const Int64Array& sequences,
                        std::int64_t num_truncated, std::int64_t truncated_tokens) {
    TokenCounts counts{max_length,           special_tokens, to_vector(tokens),
                       to_vector(sequences), num_truncated,  truncated_tokens};
    counts.validate();
    return counts;
}

py::tuple fields_of(const TokenCounts& counts) {
    return py::make_tuple(counts.max_length, counts.special_tokens, to_array(counts.tokens),
                          to_array(counts.sequences), counts.num_truncated,
                          counts.truncated_tokens);
}

constexpr py::ssize_t run_fields = 5;
static_assert(sizeof(Run) == run_fields * sizeof(std::int64_t));

Layout make_layout(std::int64_t max_tokens_per_batch, std::int64_t max_sequences_per_batch,
                   std::int64_t num_batches, std::int64_t proven_bound, const TokenCounts& counts,
                   const Int64Array& first_run, const Int64Array& runs) {
    if (runs.ndim() != 2 || runs.shape(1) != run_fields) {
        throw py::type_error("runs must have five columns");
    }
    Layout layout{
        max_tokens_per_batch, max_sequences_per_batch, num_batches, proven_bound, counts, {}, {}};
    for (const std::int64_t run : to_vector(first_run)) {
        layout.first_run.push_back(static_cast<std::size_t>(run));
    }
    const std::int64_t* field = runs.data();
    for (py::ssize_t run = 0; run < runs.shape(0); ++run, field += run_fields) {
        layout.runs.push_back({field[0], field[1], field[2], field[3], field[4]});
    }
    layout.validate();
    return layout;
}

py::tuple fields_of(const Layout& layout) {
    py::array_t<std::int64_t> first_run(static_cast<py::ssize_t>(layout.first_run.size()));
    std::ranges::copy(layout.first_run, first_run.mutable_data());
    py::array_t<std::int64_t> runs({static_cast<py::ssize_t>(layout.runs.size()), run_fields});
    std::int64_t* field = runs.mutable_data();
    for (const Run& run : layout.runs) {
        for (const std::int64_t value : {run.first_sequence, run.first_batch, run.num_batches,
                                         run.per_batch, run.first_slot}) {
            *field++ = value;
        }
    }
    return py::make_tuple(layout.max_tokens_per_batch, layout.max_sequences_per_batch,
                          layout.num_batches, layout.proven_bound, layout.counts, first_run, runs);
}

// Patterns end to end: where each begins, and the end; the sizes, and the sequences of each.
py::tuple to_arrays(std::span<const Pattern> patterns) {
    std::vector<std::int64_t> offsets{0};
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> sequences;
    for (const Pattern& pattern : patterns) {
        for (const PatternPart& part : pattern) {
            sizes.push_back(static_cast<std::int64_t>(part.size));
            sequences.push_back(part.sequences);
        }
        offsets.push_back(static_cast<std::int64_t>(sizes.size()));
    }
    return py::make_tuple(to_array(offsets), to_array(sizes), to_array(sequences));
}

std::vector<Pattern> to_patterns(const Int64Array& offsets, const Int64Array& sizes,
                                 const Int64Array& sequences) {
    const std::vector<std::int64_t> ends = to_vector(offsets);
    const std::vector<std::int64_t> size = to_vector(sizes);
    const std::vector<std::int64_t> number = to_vector(sequences);
    if (ends.empty() || ends.front() != 0 || !std::ranges::is_sorted(ends) ||
        ends.back() != static_cast<std::int64_t>(size.size()) || size.size() != number.size()) {
        throw py::value_error("patterns must be offsets, sizes and sequences");
    }
    std::vector<Pattern> patterns(ends.size() - 1);
    for (std::size_t i = 0; i < patterns.size(); ++i) {
        for (auto j = static_cast<std::size_t>(ends[i]); j < static_cast<std::size_t>(ends[i + 1]);
             ++j) {
            patterns[i].push_back({static_cast<std::size_t>(size[j]), number[j]});
        }
    }
    return patterns;
}

// Pickles a value as a call of the function that checks its fields and makes it anew.
template <class Value>
void make_picklable(py::class_<Value>& type, const char* maker) {
    type.def("__reduce__", [maker](const Value& value) {
        const auto module = py::module_::import("virnucpro.data._core");
        return py::make_tuple(module.attr(maker), fields_of(value));
    });
    refuse_new(type);
}

template <class Row, class Length>
py::tuple list_rows_of(const Layout& layout, std::span<const Length> lengths, const py::object& ids,
                       int num_threads) {
    py::array_t<Row> rows(static_cast<py::ssize_t>(lengths.size()));
    py::array_t<Row> scratch(ids.is_none() ? rows.size() : 0);
    py::array_t<std::int64_t> offsets(layout.num_batches + 1);
    with_ids(ids, [&](const Ids& order) {
        const std::span to = mutable_view<Row>(rows);
        const std::span room = mutable_view<Row>(scratch);
        const std::span starts = mutable_view<std::int64_t>(offsets);
        const py::gil_scoped_release release;
        list_rows(layout, lengths, order, room, to, starts, num_threads);
    });
    return py::make_tuple(rows, offsets);
}

template <class Row>
py::array shuffle_rows_of(const Layout& layout, const py::array& rows, std::uint64_t seed,
                          int num_threads) {
    py::array_t<Row> shuffled(rows.size());
    py::array_t<Row> scratch(rows.size());
    const std::span to = mutable_view<Row>(shuffled);
    const std::span room = mutable_view<Row>(scratch);
    {
        const py::gil_scoped_release release;
        shuffle_rows(layout, view<Row>(rows), seed, room, to, num_threads);
    }
    return shuffled;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "The packing kernel.";
    module.attr("__version__") = VIRNUCPRO_VERSION;

    auto token_counts =
        py::class_<TokenCounts>(module, "TokenCounts")
            .def_readonly("max_length", &TokenCounts::max_length)
            .def_readonly("special_tokens", &TokenCounts::special_tokens)
            .def_property_readonly("tokens",
                                   [](const TokenCounts& c) { return to_array(c.tokens); })
            .def_property_readonly("sequences",
                                   [](const TokenCounts& c) { return to_array(c.sequences); })
            .def_readonly("num_truncated", &TokenCounts::num_truncated)
            .def_readonly("truncated_tokens", &TokenCounts::truncated_tokens)
            .def_property_readonly("num_sequences", &TokenCounts::num_sequences)
            .def_property_readonly("total_tokens", &TokenCounts::total_tokens)
            .def("__add__", &add, py::is_operator())
            .def(py::self == py::self);
    make_picklable(token_counts, "make_counts");
    module.def("make_counts", &make_counts, py::arg("max_length"), py::arg("special_tokens"),
               py::arg("tokens").noconvert(), py::arg("sequences").noconvert(),
               py::arg("num_truncated"), py::arg("truncated_tokens"));

    auto layouts = py::class_<Layout>(module, "Layout")
                       .def_readonly("max_tokens_per_batch", &Layout::max_tokens_per_batch)
                       .def_property_readonly(
                           "max_sequences_per_batch",
                           [](const Layout& layout) {
                               const std::int64_t most = layout.max_sequences_per_batch;
                               return most == unlimited ? std::nullopt : std::optional(most);
                           })
                       .def_readonly("num_batches", &Layout::num_batches)
                       .def_readonly("proven_bound", &Layout::proven_bound)
                       .def_readonly("counts", &Layout::counts)
                       .def(py::self == py::self);
    make_picklable(layouts, "make_layout");
    module.def("make_layout", &make_layout, py::arg("max_tokens_per_batch"),
               py::arg("max_sequences_per_batch"), py::arg("num_batches"), py::arg("proven_bound"),
               py::arg("counts"), py::arg("first_run").noconvert(), py::arg("runs").noconvert());

    module.def(
        "count",
        [](const py::array& lengths, std::int64_t max_length, std::int64_t special_tokens,
           int num_threads) {
            return with_lengths(lengths, [&](auto span) {
                const py::gil_scoped_release release;
                return count(span, max_length, special_tokens, num_threads);
            });
        },
        py::arg("lengths"), py::arg("max_length"), py::arg("special_tokens"),
        py::arg("num_threads"));

    module.def(
        "first_fit_decreasing",
        [](const TokenCounts& counts, std::int64_t max_tokens_per_batch,
           std::optional<std::int64_t> max_sequences_per_batch) {
            const py::gil_scoped_release release;
            return first_fit_decreasing(counts, max_tokens_per_batch,
                                        max_sequences_per_batch.value_or(unlimited));
        },
        py::arg("counts"), py::arg("max_tokens_per_batch"), py::arg("max_sequences_per_batch"));

    module.def(
        "layout_of",
        [](const TokenCounts& counts, std::int64_t max_tokens_per_batch,
           std::optional<std::int64_t> max_sequences_per_batch, const Int64Array& offsets,
           const Int64Array& sizes, const Int64Array& sequences, const Int64Array& num_batches,
           std::int64_t proven_bound) {
            const std::vector<Pattern> patterns = to_patterns(offsets, sizes, sequences);
            const std::vector<std::int64_t> numbers = to_vector(num_batches);
            const py::gil_scoped_release release;
            return layout_of(counts, max_tokens_per_batch,
                             max_sequences_per_batch.value_or(unlimited), patterns, numbers,
                             proven_bound);
        },
        py::arg("counts"), py::arg("max_tokens_per_batch"), py::arg("max_sequences_per_batch"),
        py::arg("offsets").noconvert(), py::arg("sizes").noconvert(),
        py::arg("sequences").noconvert(), py::arg("num_batches").noconvert(),
        py::arg("proven_bound"));

    module.def(
        "patterns_of",
        [](const Layout& layout) {
            const auto [patterns, num_batches] = patterns_of(layout);
            return py::make_tuple(to_arrays(patterns), to_array(num_batches));
        },
        py::arg("layout"));

    module.def(
        "knapsack_steps",
        [](const TokenCounts& counts, std::int64_t max_tokens_per_batch,
           std::optional<std::int64_t> max_sequences_per_batch) {
            return knapsack_steps(counts, max_tokens_per_batch,
                                  max_sequences_per_batch.value_or(unlimited));
        },
        py::arg("counts"), py::arg("max_tokens_per_batch"), py::arg("max_sequences_per_batch"));

    module.def(
        "most_valuable",
        [](const TokenCounts& counts, const Int64Array& values, std::int64_t max_tokens_per_batch,
           std::optional<std::int64_t> max_sequences_per_batch, std::int64_t least,
           std::size_t first_size, std::size_t most) {
            const std::vector<std::int64_t> worth = to_vector(values);
            Priced priced;
            {
                const py::gil_scoped_release release;
                priced = most_valuable(counts, worth, max_tokens_per_batch,
                                       max_sequences_per_batch.value_or(unlimited), least,
                                       first_size, most);
            }
            return py::make_tuple(priced.best, to_arrays(priced.patterns));
        },
        py::arg("counts"), py::arg("values").noconvert(), py::arg("max_tokens_per_batch"),
        py::arg("max_sequences_per_batch"), py::arg("least"), py::arg("first_size"),
        py::arg("most"));

    module.def("lower_bound", &lower_bound, py::call_guard<py::gil_scoped_release>(),
               py::arg("layout"));

    module.def(
        "batch_tokens",
        [](const Layout& layout) {
            py::array_t<std::int64_t> tokens(layout.num_batches);
            const std::span span = mutable_view<std::int64_t>(tokens);
            const py::gil_scoped_release release;
            batch_tokens(layout, span);
            return tokens;
        },
        py::arg("layout"));

    const auto assign_to = [](Place place) {
        return [place](const Layout& layout, const py::array& lengths, const TokenCounts& before,
                       py::array& out, int num_threads) {
            with_lengths(lengths, [&](auto span) {
                with_number(out, "out", [&]<class Number>(Number) {
                    const std::span numbers = mutable_view<Number>(out);
                    const py::gil_scoped_release release;
                    assign(layout, span, before, place, numbers, num_threads);
                });
            });
        };
    };
    module.def("assign_batches", assign_to(Place::batch), py::arg("layout"), py::arg("lengths"),
               py::arg("before"), py::arg("out"), py::arg("num_threads"));
    module.def("assign_slots", assign_to(Place::slot), py::arg("layout"), py::arg("lengths"),
               py::arg("before"), py::arg("out"), py::arg("num_threads"));

    module.def(
        "list_rows",
        [](const Layout& layout, const py::array& lengths, const py::object& ids, int num_threads) {
            return with_lengths(lengths, [&](auto span) -> py::tuple {
                const bool is_narrow =
                    span.size() <= std::size_t{std::numeric_limits<std::int32_t>::max()};
                return is_narrow ? list_rows_of<std::int32_t>(layout, span, ids, num_threads)
                                 : list_rows_of<std::int64_t>(layout, span, ids, num_threads);
            });
        },
        py::arg("layout"), py::arg("lengths"), py::arg("ids"), py::arg("num_threads"));

    module.def(
        "shuffle_rows",
        [](const Layout& layout, const py::array& rows, std::uint64_t seed, int num_threads) {
            py::array shuffled;
            with_number(rows, "rows", [&]<class Row>(Row) {
                shuffled = shuffle_rows_of<Row>(layout, rows, seed, num_threads);
            });
            return shuffled;
        },
        py::arg("layout"), py::arg("rows"), py::arg("seed"), py::arg("num_threads"));

    add_records(module);
    add_scanner(module);
}
