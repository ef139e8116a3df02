#pragma once

#include <pybind11/pybind11.h>

// Each adds one family of functions and classes to the module.
void add_counts(pybind11::module_& module);
void add_layouts(pybind11::module_& module);
void add_patterns(pybind11::module_& module);
void add_records(pybind11::module_& module);
void add_rows(pybind11::module_& module);
void add_scanner(pybind11::module_& module);

// Refuses Type() and Type.__new__(Type): an object made by these would hold no value.
inline void refuse_new(pybind11::handle type) {
    reinterpret_cast<PyTypeObject*>(type.ptr())->tp_new = [](PyTypeObject* refused, PyObject*,
                                                             PyObject*) -> PyObject* {
        PyErr_Format(PyExc_TypeError, "%s cannot be made this way", refused->tp_name);
        return nullptr;
    };
}
