#include <pybind11/pybind11.h>

#include "bindings/families.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The packing kernel.";
    module.attr("__version__") = VIRNUCPRO_VERSION;
    add_counts(module);
    add_layouts(module);
    add_patterns(module);
    add_rows(module);
    add_records(module);
    add_scanner(module);
}
