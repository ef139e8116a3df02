#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "packing/counts.hpp"
#include "packing/layout.hpp"
#include "packing/ranks.hpp"

namespace py = pybind11;
using namespace packing;

namespace {

struct Name {
    const char* name;
    std::int64_t Run::* member;
};

constexpr Name run_names[] = {{"first_sequence", &Run::first_sequence},
                              {"first_batch", &Run::first_batch},
                              {"num_batches", &Run::num_batches},
                              {"per_batch", &Run::per_batch},
                              {"first_slot", &Run::first_slot}};

// Returns runs as one array per field.
py::dict to_dict(std::span<const Run> runs) {
    py::dict columns;
    for (const auto& [name, member] : run_names) {
        py::array_t<std::int64_t> column(static_cast<py::ssize_t>(runs.size()));
        std::int64_t* to = column.mutable_data();
        for (const Run& run : runs) {
            *to++ = run.*member;
        }
        columns[name] = column;
    }
    return columns;
}

std::vector<Run> to_runs(const py::dict& columns) {
    const auto is_field = [&](const auto& field) { return columns.contains(field.name); };
    if (columns.size() != std::size(run_names) || !std::ranges::all_of(run_names, is_field)) {
        throw py::value_error("inconsistent layout: runs must have one array per field");
    }
    std::vector<Run> runs;
    for (const auto& [name, member] : run_names) {
        const py::object column = columns[name];
        if (!py::isinstance<Int64Array>(column)) {
            throw py::type_error("runs must be a dict of int64 arrays");
        }
        const std::vector<std::int64_t> values = to_vector(column, "runs");
        if (member == run_names[0].member) {
            runs.resize(values.size());
        }
        if (values.size() != runs.size()) {
            throw py::value_error("inconsistent layout: fields of runs differ in length");
        }
        for (std::size_t run = 0; run < runs.size(); ++run) {
            runs[run].*member = values[run];
        }
    }
    return runs;
}

std::vector<std::size_t> to_places(const Int64Array& array) {
    const std::vector<std::int64_t> values = to_vector(array, "first_run");
    std::vector<std::size_t> places;
    places.reserve(values.size());
    for (const std::int64_t value : values) {
        places.push_back(static_cast<std::size_t>(value));
    }
    return places;
}

py::array_t<std::int64_t> to_first_run(const Layout& layout) {
    py::array_t<std::int64_t> first_run(static_cast<py::ssize_t>(layout.first_run.size()));
    std::ranges::copy(layout.first_run, first_run.mutable_data());
    return first_run;
}

template <class Number, class Tokens, class Rank>
py::tuple place_as(const Layout& layout, std::span<const Tokens> tokens,
                   std::span<const Rank> ranks, int num_threads) {
    py::array_t<Number> batches(static_cast<py::ssize_t>(tokens.size()));
    py::array_t<Number> slots(batches.size());
    const std::span batch_of = mutable_view<Number>(batches);
    const std::span slot_of = mutable_view<Number>(slots);
    {
        const py::gil_scoped_release release;
        place_ranks(layout, tokens, ranks, batch_of, slot_of, num_threads);
    }
    return py::make_tuple(batches, slots);
}

}  // namespace

void add_layouts(py::module_& module) {
    const auto type = py::class_<Layout>(module, "Layout")
                          .def_readonly("counts", &Layout::counts)
                          .def_readonly("num_batches", &Layout::num_batches)
                          .def_readonly("proven_bound", &Layout::proven_bound)
                          .def_property_readonly("first_run", &to_first_run)
                          .def_property_readonly(
                              "runs", [](const Layout& layout) { return to_dict(layout.runs); })
                          .def(py::self == py::self);
    seal(type);

    module.def(
        "make_layout",
        [](const TokenCounts& counts, std::int64_t num_batches, std::int64_t proven_bound,
           const Int64Array& first_run, const py::dict& runs) {
            Layout layout{counts, num_batches, proven_bound, to_places(first_run), to_runs(runs)};
            layout.validate();
            return layout;
        },
        py::kw_only(), py::arg("counts"), py::arg("num_batches"), py::arg("proven_bound"),
        py::arg("first_run").noconvert(), py::arg("runs"));

    module.def("first_fit_decreasing", &first_fit_decreasing,
               py::call_guard<py::gil_scoped_release>(), py::arg("counts"));

    module.def("with_bound", &with_bound, py::arg("layout"), py::arg("proven_bound"));

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

    module.def(
        "batch_offsets",
        [](const Layout& layout) {
            py::array_t<std::int64_t> offsets(layout.num_batches + 1);
            const std::span span = mutable_view<std::int64_t>(offsets);
            const py::gil_scoped_release release;
            batch_offsets(layout, span);
            return offsets;
        },
        py::arg("layout"));

    module.def(
        "tokens_of_batches",
        [](const Layout& layout, std::int64_t first, std::int64_t last) {
            const auto tokens = [&] {
                const py::gil_scoped_release release;
                return tokens_of_batches(layout, first, last);
            }();
            return py::array_t<std::int64_t>(static_cast<py::ssize_t>(tokens.size()),
                                             tokens.data());
        },
        py::arg("layout"), py::arg("first"), py::arg("last"));

    module.def(
        "place_ranks",
        [](const Layout& layout, const py::array& tokens, const py::array& ranks, int num_threads) {
            const bool is_narrow =
                layout.counts.num_sequences() <= std::numeric_limits<std::int32_t>::max();
            return with_number(tokens, "tokens", [&]<class Tokens>(Tokens) {
                return with_number(ranks, "ranks", [&]<class Rank>(Rank) {
                    const std::span<const Tokens> sizes = view<Tokens>(tokens);
                    const std::span<const Rank> numbers = view<Rank>(ranks);
                    return is_narrow ? place_as<std::int32_t>(layout, sizes, numbers, num_threads)
                                     : place_as<std::int64_t>(layout, sizes, numbers, num_threads);
                });
            });
        },
        py::arg("layout"), py::arg("tokens"), py::arg("ranks"), py::arg("num_threads"));
}
