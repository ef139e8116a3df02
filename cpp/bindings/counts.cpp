#include "packing/counts.hpp"

#include <pybind11/numpy.h>
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "bindings/limits.hpp"

namespace py = pybind11;
using namespace packing;

void add_counts(py::module_& module) {
    const auto type =
        py::class_<TokenCounts>(module, "TokenCounts")
            .def_property_readonly("tokens",
                                   [](const TokenCounts& c) { return to_array(c.tokens); })
            .def_property_readonly("sequences",
                                   [](const TokenCounts& c) { return to_array(c.sequences); })
            .def_readonly("num_truncated", &TokenCounts::num_truncated)
            .def_readonly("truncated_residues", &TokenCounts::truncated_residues)
            .def_readonly("padding_tokens", &TokenCounts::padding_tokens)
            // By reference: a pointer to a member function would be called for None too.
            .def_property_readonly("num_sequences",
                                   [](const TokenCounts& c) { return c.num_sequences(); })
            .def_property_readonly("total_tokens",
                                   [](const TokenCounts& c) { return c.total_tokens(); })
            .def_property_readonly(
                "max_tokens_per_batch",
                [](const TokenCounts& c) { return c.limits.max_tokens_per_batch; })
            .def_property_readonly(
                "max_sequences_per_batch",
                [](const TokenCounts& c) { return c.limits.max_sequences_per_batch; })
            .def("with_limits", &with_limits, py::arg("limits"))
            .def("__add__", &add, py::is_operator())
            .def(py::self == py::self);
    seal(type);

    const auto define_maker = [&module](const char* name, const auto& make) {
        module.def(
            name,
            [make](const Limits& limits, const Int64Array& tokens, const Int64Array& sequences,
                   std::int64_t num_truncated, std::int64_t truncated_residues,
                   std::int64_t padding_tokens) {
                return make(TokenCounts{limits, to_vector(tokens, "tokens"),
                                        to_vector(sequences, "sequences"), num_truncated,
                                        truncated_residues, padding_tokens});
            },
            py::kw_only(), py::arg("limits"), py::arg("tokens").noconvert(),
            py::arg("sequences").noconvert(), py::arg("num_truncated"),
            py::arg("truncated_residues"), py::arg("padding_tokens") = 0);
    };
    define_maker("make_counts", [](TokenCounts counts) {
        counts.validate();
        return counts;
    });
    define_maker("counts_from_pairs", &from_pairs);

    module.def(
        "count",
        [](const py::array& lengths, const Limits& limits, int num_threads) {
            return with_lengths(lengths, [&](auto span) {
                const py::gil_scoped_release release;
                return count(span, limits, num_threads);
            });
        },
        py::arg("lengths"), py::arg("limits"), py::arg("num_threads"));

    module.def(
        "subset",
        [](const TokenCounts& counts, const Int64Array& sequences) {
            return subset(counts, to_vector(sequences, "sequences"));
        },
        py::arg("counts"), py::arg("sequences").noconvert());
}
