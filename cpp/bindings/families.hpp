#pragma once

#include <pybind11/pybind11.h>

// Each function adds a family of functions and classes to the module.
void add_counts(pybind11::module_& module);
void add_layouts(pybind11::module_& module);
void add_patterns(pybind11::module_& module);
void add_records(pybind11::module_& module);
void add_rows(pybind11::module_& module);
void add_scanner(pybind11::module_& module);

// Disables Type() and Type.__new__(Type), which would create an object without a value.
inline void refuse_new(pybind11::handle type) {
    reinterpret_cast<PyTypeObject*>(type.ptr())->tp_new = [](PyTypeObject* refused, PyObject*,
                                                             PyObject*) -> PyObject* {
        PyErr_Format(PyExc_TypeError, "cannot create '%s' instances directly", refused->tp_name);
        return nullptr;
    };
}
