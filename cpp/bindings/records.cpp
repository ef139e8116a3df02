#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

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

// Begins to load memory that is read soon.
void prefetch(const void* address) {
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    static_cast<void>(address);
#endif
}

// Begins to load the keys of an object that may be a dict.
void prefetch_keys(PyObject* record) {
    if (PyDict_CheckExact(record)) {
        const auto* const keys =
            reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(record)->ma_keys);
        prefetch(keys);
        prefetch(keys + 64);
    }
}

// Whether an exact str equals a key of ASCII letters.
bool is_key(PyObject* text, const py::str& key) {
    return text == key.ptr() ||
           (PyUnicode_IS_COMPACT_ASCII(text) &&
            PyUnicode_GET_LENGTH(text) == PyUnicode_GET_LENGTH(key.ptr()) &&
            std::memcmp(PyUnicode_DATA(text), PyUnicode_DATA(key.ptr()),
                        static_cast<std::size_t>(PyUnicode_GET_LENGTH(text))) == 0);
}

struct Keys {
    py::str id = owned<py::str>(PyUnicode_InternFromString("id"));
    py::str sequence = owned<py::str>(PyUnicode_InternFromString("sequence"));
    py::str truncated = owned<py::str>(PyUnicode_InternFromString("truncated"));
};

// The ID and the sequence of a record, borrowed; null if they were not found.
struct Fields {
    PyObject* id = nullptr;
    PyObject* sequence = nullptr;
};

// Finds the fields of a dict among its first keys. Unlike a look-up, this cannot run user code: it
// gives up at a key that is not exactly a str.
Fields borrow_fields(PyObject* record, const Keys& keys) {
    Fields fields;
    if (!PyDict_CheckExact(record)) {
        return {};
    }
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    py::ssize_t position = 0;
    for (int tried = 0; tried < 8 && PyDict_Next(record, &position, &key, &value) != 0; ++tried) {
        if (!PyUnicode_CheckExact(key)) {
            return {};
        }
        if (is_key(key, keys.id)) {
            fields.id = value;
        } else if (is_key(key, keys.sequence)) {
            fields.sequence = value;
        }
        if (fields.id != nullptr && fields.sequence != nullptr) {
            return fields;
        }
    }
    return {};
}

// Reads records, all of them dicts with a str ID and sequence.
class Reader {
  public:
    // Sequences are truncated to `limit` residues if there is a limit.
    Reader(const py::list& records, std::optional<std::int64_t> limit)
        : records_(records),
          limit_(limit.value_or(std::numeric_limits<std::int64_t>::max())),
          lengths_(PyList_GET_SIZE(records.ptr())),
          length_of_(lengths_.mutable_data()),
          ids_(owned<py::tuple>(PyTuple_New(lengths_.size()))) {
        // User code must not find the tuple while items are null. A tuple of str needs no
        // collection.
        PyObject_GC_UnTrack(ids_.ptr());
    }

    // Returns false if a record is something else.
    bool read() {
        for (py::ssize_t row = 0; row < lengths_.size();) {
            const py::ssize_t num_read = read_block(row);
            row += num_read;
            if (num_read < block_size && row < lengths_.size() && !read_one(row++)) {
                return false;
            }
        }
        return true;
    }

    // Replaces the records of truncated sequences, and returns the IDs and all lengths as read.
    py::tuple finish() {
        for (auto& [row, record] : truncated_) {
            if (PyList_SetItem(records_.ptr(), row, record.release().ptr()) != 0) {
                throw py::error_already_set();
            }
        }
        return owned<py::tuple>(PyTuple_Pack(2, ids_.ptr(), lengths_.ptr()));
    }

  private:
    static constexpr py::ssize_t block_size = 16;

    // A record to be truncated, and its sequence as read.
    struct Overlong {
        py::ssize_t row;
        py::object record;
        py::object sequence;
    };

    // Reads records up to the end of a block, or to one that read_one must read. Returns their
    // number. The memory of a block is loaded at the same time: most of it is in no cache.
    py::ssize_t read_block(py::ssize_t first) {
        PyObject** const items = PySequence_Fast_ITEMS(records_.ptr());
        const py::ssize_t size = std::min(PyList_GET_SIZE(records_.ptr()), lengths_.size());
        const auto row_after = [&](py::ssize_t blocks) {
            return std::min(size, first + blocks * block_size);
        };
        std::for_each(items + row_after(2), items + row_after(3), prefetch);
        std::for_each(items + row_after(1), items + row_after(2), prefetch_keys);
        std::array<Fields, block_size> fields;
        const std::span block(items + std::min(first, size), items + row_after(1));
        for (std::size_t i = 0; i < block.size(); ++i) {
            fields[i] = borrow_fields(block[i], keys_);
            prefetch(fields[i].id);
            prefetch(fields[i].sequence);
        }
        std::vector<Overlong> overlong;
        py::ssize_t num_read = 0;
        for (const auto [id, sequence] : std::span(fields).first(block.size())) {
            if (id == nullptr || !PyUnicode_CheckExact(id) || !PyUnicode_CheckExact(sequence)) {
                break;
            }
            const py::ssize_t row = first + num_read++;
            if (PyUnicode_GET_LENGTH(sequence) > limit_) {
                overlong.push_back(
                    {row, get_record(records_, row), py::reinterpret_borrow<py::object>(sequence)});
            }
            add(row, py::reinterpret_borrow<py::object>(id), sequence);
        }
        // Truncating may run user code, so no borrowed field is used after it.
        for (const auto& [row, record, sequence] : overlong) {
            truncate(row, record, sequence);
        }
        return num_read;
    }

    // Reads any record, and owns it meanwhile. Returns false if it is not such a dict.
    bool read_one(py::ssize_t row) {
        const py::object record = get_record(records_, row);
        py::object id = get_text(record, keys_.id);
        const py::object sequence = get_text(record, keys_.sequence);
        if (!id || !sequence) {
            return false;
        }
        if (PyUnicode_GET_LENGTH(sequence.ptr()) > limit_) {
            truncate(row, record, sequence);
        }
        add(row, std::move(id), sequence.ptr());
        return true;
    }

    void truncate(py::ssize_t row, const py::object& record, const py::object& sequence) {
        const auto part = owned<py::str>(PyUnicode_Substring(sequence.ptr(), 0, limit_));
        auto copy = owned<py::dict>(PyDict_Copy(record.ptr()));
        if (PyDict_SetItem(copy.ptr(), keys_.sequence.ptr(), part.ptr()) != 0 ||
            PyDict_SetItem(copy.ptr(), keys_.truncated.ptr(), Py_True) != 0) {
            throw py::error_already_set();
        }
        truncated_.emplace_back(row, std::move(copy));
    }

    void add(py::ssize_t row, py::object id, PyObject* sequence) {
        PyTuple_SET_ITEM(ids_.ptr(), row, id.release().ptr());
        length_of_[row] = PyUnicode_GET_LENGTH(sequence);
    }

    const py::list& records_;
    Keys keys_;
    std::int64_t limit_;
    Int64Array lengths_;
    std::int64_t* length_of_;
    py::tuple ids_;
    std::vector<std::pair<py::ssize_t, py::dict>> truncated_;
};

// Returns the IDs and lengths of records, or None unless all are dicts with a str ID and sequence.
// If there is a limit, longer sequences are truncated in copies, which replace their records.
py::object read_records(const py::list& records, std::optional<std::int64_t> limit) {
    Reader reader(records, limit);
    return reader.read() ? reader.finish() : py::object(py::none());
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

// Takes a record out of a list, in which None replaces it, so that no reference is counted: the
// records are too many to be in a cache.
PyObject* take_record(const py::list& records, std::int64_t row) {
    if (row < 0 || row >= PyList_GET_SIZE(records.ptr())) {
        throw py::index_error("indices are out of range");
    }
    PyObject* const record = PyList_GET_ITEM(records.ptr(), row);
    if (record == Py_None) {
        throw py::index_error("indices are not distinct");
    }
    PyList_SET_ITEM(records.ptr(), row, py::none().release().ptr());
    return record;
}

// Moves records into lists: batch i gets the rows indices[offsets[i]:offsets[i + 1]].
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
            PyList_SET_ITEM(rows.ptr(), i - begin,
                            take_record(records, indices[static_cast<std::size_t>(i)]));
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
    module.def("read_records", &read_records, py::arg("records"), py::arg("limit"));
    module.def("count_record_tokens", &count_record_tokens, py::arg("records"), py::arg("limits"));
    module.def("gather", &gather, py::arg("records"), py::arg("indices"),
               py::arg("offsets").noconvert());
}
