#include "packing/placement.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "bindings/limits.hpp"

namespace py = pybind11;
using namespace packing;

void add_placement(py::module_& module) {
    module.def(
        "place",
        [](const Int64Array& tokens, const Int64Array& sequences, const Int64Array& sizes,
           const Limits& limits) {
            const std::vector<std::int64_t> tokens_of = to_vector(tokens, "tokens");
            const std::vector<std::int64_t> sequences_of = to_vector(sequences, "sequences");
            const std::vector<std::int64_t> size_of = to_vector(sizes, "sizes");
            if (tokens_of.size() != sequences_of.size()) {
                throw py::value_error("tokens and sequences must have one number per open batch");
            }
            std::vector<std::int64_t> placed;
            {
                const py::gil_scoped_release release;
                std::vector<Fill> open;
                for (std::size_t batch = 0; batch < tokens_of.size(); ++batch) {
                    open.push_back({tokens_of[batch], sequences_of[batch]});
                }
                placed = place(open, size_of, limits);
            }
            return to_array(placed);
        },
        py::arg("tokens").noconvert(), py::arg("sequences").noconvert(),
        py::arg("sizes").noconvert(), py::arg("limits"));
}
