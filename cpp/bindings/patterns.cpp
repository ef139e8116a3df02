#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "packing/layout.hpp"
#include "packing/pricing.hpp"
#include "packing/reservation.hpp"

namespace py = pybind11;
using namespace packing;

namespace {

// Returns concatenated patterns: the offsets, the sizes, and the number of sequences of each size.
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
    const std::vector<std::int64_t> ends = to_vector(offsets, "offsets");
    const std::vector<std::int64_t> size = to_vector(sizes, "sizes");
    const std::vector<std::int64_t> number = to_vector(sequences, "sequences");
    if (ends.empty() || ends.front() != 0 || !std::ranges::is_sorted(ends) ||
        ends.back() != static_cast<std::int64_t>(size.size()) || size.size() != number.size()) {
        throw py::value_error("invalid patterns: offsets, sizes and sequences do not match");
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

}  // namespace

void add_patterns(py::module_& module) {
    module.def(
        "layout_from_patterns",
        [](const TokenCounts& counts, const Int64Array& offsets, const Int64Array& sizes,
           const Int64Array& sequences, const Int64Array& num_batches) {
            const std::vector<Pattern> patterns = to_patterns(offsets, sizes, sequences);
            const std::vector<std::int64_t> numbers = to_vector(num_batches, "num_batches");
            const py::gil_scoped_release release;
            return layout_from_patterns(counts, patterns, numbers);
        },
        py::arg("counts"), py::arg("offsets").noconvert(), py::arg("sizes").noconvert(),
        py::arg("sequences").noconvert(), py::arg("num_batches").noconvert());

    module.def(
        "patterns_of",
        [](const Layout& layout) {
            const auto [patterns, num_batches] = patterns_of(layout);
            return py::make_tuple(to_arrays(patterns), to_array(num_batches));
        },
        py::arg("layout"));

    module.def("patterns_with_reservation", &patterns_with_reservation,
               py::call_guard<py::gil_scoped_release>(), py::arg("counts"),
               py::arg("max_parts") = max_parts_of_patterns);

    module.def(
        "coarsen",
        [](const TokenCounts& counts, std::int64_t unit, std::size_t max_sizes, bool round_down) {
            CoarseCounts coarse;
            {
                const py::gil_scoped_release release;
                coarse = coarsen(counts, unit, max_sizes,
                                 round_down ? Rounding::down : Rounding::nearest);
            }
            const std::vector<std::int64_t> first_size(coarse.first_size.begin(),
                                                       coarse.first_size.end());
            return py::make_tuple(std::move(coarse.counts), to_array(first_size));
        },
        py::arg("counts"), py::arg("unit"), py::arg("max_sizes"), py::arg("round_down"));

    module.def(
        "refine",
        [](const TokenCounts& counts, const Int64Array& first_size, const Int64Array& offsets,
           const Int64Array& sizes, const Int64Array& sequences, const Int64Array& num_batches) {
            const std::vector<std::int64_t> given = to_vector(first_size, "first_size");
            const std::vector<std::size_t> first(given.begin(), given.end());
            const std::vector<Pattern> patterns = to_patterns(offsets, sizes, sequences);
            const std::vector<std::int64_t> numbers = to_vector(num_batches, "num_batches");
            Refined refined;
            {
                const py::gil_scoped_release release;
                refined = refine(counts, first, patterns, numbers);
            }
            return py::make_tuple(to_arrays(refined.patterns), to_array(refined.num_batches),
                                  to_array(refined.remaining));
        },
        py::arg("counts"), py::arg("first_size").noconvert(), py::arg("offsets").noconvert(),
        py::arg("sizes").noconvert(), py::arg("sequences").noconvert(),
        py::arg("num_batches").noconvert());

    module.def("pricing_steps", &pricing_steps, py::arg("counts"));

    module.def(
        "price_patterns",
        [](const TokenCounts& counts, const Int64Array& duals, std::size_t first_size,
           std::size_t max_patterns) {
            const std::vector<std::int64_t> dual_of = to_vector(duals, "duals");
            Pricing pricing;
            {
                const py::gil_scoped_release release;
                pricing = price_patterns(counts, dual_of, first_size, max_patterns);
            }
            return py::make_tuple(pricing.best_value, to_arrays(pricing.patterns));
        },
        py::arg("counts"), py::arg("duals").noconvert(), py::arg("first_size"),
        py::arg("max_patterns"));
}
