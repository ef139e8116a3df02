#pragma once

#include <pybind11/pybind11.h>

// Adds the scanner of FASTA.
void add_scanner(pybind11::module_& module);
