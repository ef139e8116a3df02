#include <pybind11/pybind11.h>

#include "bindings/families.hpp"

namespace {

void require_main_interpreter() {
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        throw pybind11::import_error(
            "virnucpro works in the main interpreter of a process only (got a subinterpreter)");
    }
}

}  // namespace

PYBIND11_MODULE(core, module) {
    // Python 3.13 calls PyInit__core in the main interpreter.
    require_main_interpreter();
    module.doc() = "The packing kernel.";
    module.attr("__version__") = VIRNUCPRO_VERSION;
    add_counts(module);
    add_layouts(module);
    add_patterns(module);
    add_placement(module);
    add_rows(module);
    add_records(module);
    add_scanner(module);
}

// Before Python 3.12, PyInit_core would wait in a subinterpreter for a lock that its caller holds.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    try {
        require_main_interpreter();
    } catch (const pybind11::import_error& error) {
        error.set_error();
        return nullptr;
    }
    return PyInit_core();
}
