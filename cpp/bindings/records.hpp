#pragma once

#include <pybind11/pybind11.h>

// Adds the functions that read records (dicts with `id` and `sequence`) and put them into batches.
void add_records(pybind11::module_& module);
