#pragma once

#include <pybind11/pybind11.h>

#include <string>

// Each function adds a family of functions and classes to the module.
void add_counts(pybind11::module_& module);
void add_layouts(pybind11::module_& module);
void add_patterns(pybind11::module_& module);
void add_placement(pybind11::module_& module);
void add_records(pybind11::module_& module);
void add_rows(pybind11::module_& module);
void add_scanner(pybind11::module_& module);

// Makes the functions of the module the only source of instances of a class: no subclass, no
// pickles, and no assignment of `__class__`, since the methods would take other memory for a value.
inline void seal(pybind11::handle type) {
    auto* const sealed = reinterpret_cast<PyTypeObject*>(type.ptr());
    // Up to protocol 1, pickle would call the base class of pybind11, which ends the process.
    const auto refuse_pickling = [sealed](const pybind11::args&) {
        throw pybind11::type_error(std::string("cannot pickle '") + sealed->tp_name + "' object");
    };
    for (const char* const name : {"__reduce__", "__reduce_ex__"}) {
        pybind11::setattr(type, name,
                          pybind11::cpp_function(refuse_pickling, pybind11::is_method(type)));
    }
    sealed->tp_new = [](PyTypeObject* refused, PyObject*, PyObject*) -> PyObject* {
        PyErr_Format(PyExc_TypeError, "cannot create '%s' instances directly", refused->tp_name);
        return nullptr;
    };
    sealed->tp_flags = (sealed->tp_flags | Py_TPFLAGS_IMMUTABLETYPE) & ~Py_TPFLAGS_BASETYPE;
}
