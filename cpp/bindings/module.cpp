#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "packing/assign.hpp"
#include "packing/counts.hpp"
#include "packing/ids.hpp"
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

// Calls use(number) with a number of the type that the array `out` holds.
template <class Use>
void with_number(const py::array& out, const Use& use) {
    require_plain(out, "out");
    if (out.dtype().kind() == 'i' && out.itemsize() == 4) {
        use(std::int32_t{});
    } else if (out.dtype().kind() == 'i' && out.itemsize() == 8) {
        use(std::int64_t{});
    } else {
        throw py::type_error("out must be int32 or int64");
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

// Calls use(ids) with None, a tuple of str, or an array of int64 or fixed-width strings.
template <class Use>
void with_ids(const py::object& ids, const Use& use) {
    if (ids.is_none()) {
        use(Ids{});
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

template <class Number>
py::array_t<Number> copy(const std::vector<Number>& values) {
    return py::array_t<Number>(static_cast<py::ssize_t>(values.size()), values.data());
}

std::vector<std::int64_t> to_vector(const py::array_t<std::int64_t, py::array::c_style>& array) {
    if (array.ndim() != 1) {
        throw py::type_error("state must hold one-dimensional arrays");
    }
    return {array.data(), array.data() + array.size()};
}

using Int64Array = py::array_t<std::int64_t, py::array::c_style>;

py::tuple get_state(const TokenCounts& counts) {
    return py::make_tuple(counts.max_length, counts.special_tokens, copy(counts.tokens),
                          copy(counts.sequences), counts.num_truncated, counts.truncated_tokens);
}

TokenCounts counts_from(const py::tuple& state) {
    if (state.size() != 6) {
        throw py::value_error("not the state of token counts");
    }
    TokenCounts counts;
    counts.max_length = state[0].cast<std::int64_t>();
    counts.special_tokens = state[1].cast<std::int64_t>();
    counts.tokens = to_vector(state[2].cast<Int64Array>());
    counts.sequences = to_vector(state[3].cast<Int64Array>());
    counts.num_truncated = state[4].cast<std::int64_t>();
    counts.truncated_tokens = state[5].cast<std::int64_t>();
    counts.validate();
    return counts;
}

constexpr py::ssize_t run_fields = 5;
static_assert(sizeof(Run) == run_fields * sizeof(std::int64_t));

py::tuple get_state(const Layout& layout) {
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
                          layout.num_batches, get_state(layout.counts), first_run, runs);
}

Layout layout_from(const py::tuple& state) {
    if (state.size() != 6) {
        throw py::value_error("not the state of a layout");
    }
    Layout layout;
    layout.max_tokens_per_batch = state[0].cast<std::int64_t>();
    layout.max_sequences_per_batch = state[1].cast<std::int64_t>();
    layout.num_batches = state[2].cast<std::int64_t>();
    layout.counts = counts_from(state[3].cast<py::tuple>());
    for (const std::int64_t run : to_vector(state[4].cast<Int64Array>())) {
        layout.first_run.push_back(static_cast<std::size_t>(run));
    }
    const auto runs = state[5].cast<Int64Array>();
    if (runs.ndim() != 2 || runs.shape(1) != run_fields) {
        throw py::value_error("not the state of a layout");
    }
    const std::int64_t* field = runs.data();
    for (py::ssize_t run = 0; run < runs.shape(0); ++run, field += run_fields) {
        layout.runs.push_back({field[0], field[1], field[2], field[3], field[4]});
    }
    layout.validate();
    return layout;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "The packing kernel.";
    module.attr("__version__") = VIRNUCPRO_VERSION;

    py::class_<TokenCounts>(module, "TokenCounts")
        .def_readonly("max_length", &TokenCounts::max_length)
        .def_readonly("special_tokens", &TokenCounts::special_tokens)
        .def_property_readonly("tokens", [](const TokenCounts& c) { return copy(c.tokens); })
        .def_property_readonly("sequences", [](const TokenCounts& c) { return copy(c.sequences); })
        .def_readonly("num_truncated", &TokenCounts::num_truncated)
        .def_readonly("truncated_tokens", &TokenCounts::truncated_tokens)
        .def_property_readonly("num_sequences", &TokenCounts::num_sequences)
        .def_property_readonly("total_tokens", &TokenCounts::total_tokens)
        .def("__add__", &add, py::is_operator())
        .def(py::self == py::self)
        .def(py::pickle([](const TokenCounts& counts) { return get_state(counts); }, &counts_from));

    py::class_<Layout>(module, "Layout")
        .def_readonly("max_tokens_per_batch", &Layout::max_tokens_per_batch)
        .def_property_readonly("max_sequences_per_batch",
                               [](const Layout& layout) {
                                   const std::int64_t most = layout.max_sequences_per_batch;
                                   return most == unlimited ? std::nullopt : std::optional(most);
                               })
        .def_readonly("num_batches", &Layout::num_batches)
        .def_readonly("counts", &Layout::counts)
        .def(py::self == py::self)
        .def(py::pickle([](const Layout& layout) { return get_state(layout); }, &layout_from));

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
                with_number(out, [&]<class Number>(Number) {
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
        [](const Layout& layout, const py::array& lengths, const py::object& ids,
           py::array& scratch, py::array& out, py::array_t<std::int64_t>& offsets,
           int num_threads) {
            require_plain(scratch, "scratch");
            require_plain(offsets, "offsets");
            if (!scratch.dtype().is(out.dtype())) {
                throw py::type_error("scratch and out differ in type");
            }
            with_lengths(lengths, [&](auto span) {
                with_ids(ids, [&](const Ids& order) {
                    with_number(out, [&]<class Number>(Number) {
                        const std::span room = mutable_view<Number>(scratch);
                        const std::span rows = mutable_view<Number>(out);
                        const std::span starts = mutable_view<std::int64_t>(offsets);
                        const py::gil_scoped_release release;
                        list_rows(layout, span, order, room, rows, starts, num_threads);
                    });
                });
            });
        },
        py::arg("layout"), py::arg("lengths"), py::arg("ids"), py::arg("scratch"), py::arg("out"),
        py::arg("offsets").noconvert(), py::arg("num_threads"));
}
