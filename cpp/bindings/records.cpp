#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "bindings/limits.hpp"

namespace py = pybind11;

namespace {

// Pauses the garbage collector, which would traverse the new lists repeatedly as they grow, and run
// user code that could read their items while they are null.
class NoCollection {
  public:
    NoCollection() : was_enabled_(PyGC_Disable() != 0) {}
    ~NoCollection() {
        if (was_enabled_) {
            PyGC_Enable();
        }
    }
    NoCollection(const NoCollection&) = delete;
    NoCollection& operator=(const NoCollection&) = delete;

  private:
    bool was_enabled_;
};

// Takes ownership of a new object, or throws the Python error if it is null.
template <class Object>
Object owned(PyObject* object) {
    if (object == nullptr) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<Object>(object);
}

// Returns the value of a key if the record is exactly a dict and the value exactly a str, otherwise
// null. Comparing keys may run user code, so the record and the value are owned.
py::object get_text(const py::object& record, const py::str& key) {
    if (!PyDict_CheckExact(record.ptr())) {
        return {};
    }
    PyObject* const value = PyDict_GetItemWithError(record.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred() != nullptr) {
        throw py::error_already_set();
    }
    if (value == nullptr || !PyUnicode_CheckExact(value)) {
        return {};
    }
    return py::reinterpret_borrow<py::object>(value);
}

py::object get_record(const py::list& records, py::ssize_t row) {
    if (row >= PyList_GET_SIZE(records.ptr())) {
        throw py::index_error("records changed while they were being read");
    }
    return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(records.ptr(), row));
}

// Returns the number of residues of a record, or nothing if it is not a dict with a str.
std::optional<std::int64_t> length_of(const py::object& record, const py::str& sequence_key) {
    const py::object sequence = get_text(record, sequence_key);
    if (!sequence) {
        return std::nullopt;
    }
    return PyUnicode_GET_LENGTH(sequence.ptr());
}

// Returns the IDs and lengths of records, or None unless all are dicts with a str ID and sequence.
py::object read_records(const py::list& records) {
    const auto id_key = owned<py::str>(PyUnicode_InternFromString("id"));
    const auto sequence_key = owned<py::str>(PyUnicode_InternFromString("sequence"));
    const auto ids = owned<py::tuple>(PyTuple_New(PyList_GET_SIZE(records.ptr())));
    // User code must not find the tuple while items are null. A tuple of str needs no collection.
    PyObject_GC_UnTrack(ids.ptr());
    Int64Array lengths(PyTuple_GET_SIZE(ids.ptr()));
    std::int64_t* const out = lengths.mutable_data();
    for (py::ssize_t row = 0; row < lengths.size(); ++row) {
        const py::object record = get_record(records, row);
        py::object id = get_text(record, id_key);
        const std::optional<std::int64_t> length = length_of(record, sequence_key);
        if (!id || !length) {
            return py::none();
        }
        PyTuple_SET_ITEM(ids.ptr(), row, id.release().ptr());
        out[row] = *length;
    }
    return owned<py::tuple>(PyTuple_Pack(2, ids.ptr(), lengths.ptr()));
}

// Returns the number of tokens of records with and without padding, or nothing unless all are dicts
// with a str.
std::optional<std::pair<std::int64_t, std::int64_t>> count_record_tokens(
    const py::list& records, const packing::Limits& limits) {
    const auto sequence_key = owned<py::str>(PyUnicode_InternFromString("sequence"));
    limits.validate();
    std::int64_t tokens = 0;
    std::int64_t real_tokens = 0;
    for (py::ssize_t row = 0; row < PyList_GET_SIZE(records.ptr()); ++row) {
        const std::optional<std::int64_t> length =
            length_of(get_record(records, row), sequence_key);
        if (!length) {
            return std::nullopt;
        }
        const std::int64_t real = limits.real_tokens(*length);
        const std::int64_t added = limits.round_up(real);
        if (added > std::numeric_limits<std::int64_t>::max() - tokens) {
            throw std::overflow_error("the number of tokens does not fit in 64 bits");
        }
        tokens += added;
        real_tokens += real;
    }
    return std::pair(tokens, real_tokens);
}

// Returns lists of records: batch i has the rows indices[offsets[i]:offsets[i + 1]].
template <class Row>
py::list gather_rows(const py::list& records, std::span<const Row> indices,
                     std::span<const std::int64_t> offsets) {
    const NoCollection paused;
    const auto num_batches = static_cast<py::ssize_t>(offsets.size()) - 1;
    auto batches = owned<py::list>(PyList_New(num_batches));
    for (py::ssize_t batch = 0; batch < num_batches; ++batch) {
        const std::int64_t begin = offsets[static_cast<std::size_t>(batch)];
        const std::int64_t end = offsets[static_cast<std::size_t>(batch) + 1];
        if (begin < 0 || begin > end || end > static_cast<std::int64_t>(indices.size())) {
            throw py::index_error("offsets are out of range");
        }
        auto rows = owned<py::list>(PyList_New(end - begin));
        for (std::int64_t i = begin; i < end; ++i) {
            const Row row = indices[static_cast<std::size_t>(i)];
            if (row < 0) {
                throw py::index_error("indices are out of range");
            }
            PyList_SET_ITEM(rows.ptr(), i - begin, get_record(records, row).release().ptr());
        }
        PyList_SET_ITEM(batches.ptr(), batch, rows.release().ptr());
    }
    return batches;
}

py::list gather(const py::list& records, const py::array& indices, const Int64Array& offsets) {
    require_plain(offsets, "offsets");
    if (offsets.size() == 0) {
        throw py::type_error("offsets must not be empty");
    }
    return with_number(indices, "indices", [&]<class Row>(Row) {
        return gather_rows(records, view<Row>(indices), view<std::int64_t>(offsets));
    });
}

}  // namespace

void add_records(py::module_& module) {
    module.def("read_records", &read_records, py::arg("records"));
    module.def("count_record_tokens", &count_record_tokens, py::arg("records"), py::arg("limits"));
    module.def("gather", &gather, py::arg("records"), py::arg("indices"),
               py::arg("offsets").noconvert());
}
