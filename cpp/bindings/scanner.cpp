#include "fasta/scanner.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "bindings/families.hpp"

namespace py = pybind11;

namespace {

// A scanner that refuses concurrent use, since scanning releases the GIL.
class Guarded {
  public:
    Guarded(const fasta::Options& options, bool keep_residues) : scanner_(options, keep_residues) {}

    // Calls use(scanner).
    template <class Use>
    auto with(const Use& use) {
        if (in_use_.exchange(true)) {
            throw std::runtime_error("another thread is using this scanner");
        }
        const std::unique_ptr<std::atomic<bool>, void (*)(std::atomic<bool>*)> release(
            &in_use_, [](std::atomic<bool>* in_use) { in_use->store(false); });
        return use(scanner_);
    }

  private:
    fasta::Scanner scanner_;
    std::atomic<bool> in_use_ = false;
};

// The contiguous bytes of an object, which cannot be resized during the lifetime of this view.
class Bytes {
  public:
    explicit Bytes(py::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) {
            throw py::error_already_set();
        }
    }
    ~Bytes() { PyBuffer_Release(&view_); }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;

    std::string_view text() const {
        return {static_cast<const char*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

  private:
    Py_buffer view_{};
};

// Returns an array that owns a container and shares its memory, shrunk to fit.
template <class Value, class Container>
py::array_t<Value> to_array(Container&& values) {
    values.shrink_to_fit();
    auto kept = std::make_unique<Container>(std::forward<Container>(values));
    const auto size = static_cast<py::ssize_t>(kept->size());
    const auto* const first = reinterpret_cast<const Value*>(kept->data());
    const py::capsule owner(kept.get(), [](void* p) { delete static_cast<Container*>(p); });
    [[maybe_unused]] const auto* const given = kept.release();
    return py::array_t<Value>(size, first, owner);
}

py::tuple take_lengths(Guarded& guarded) {
    fasta::Records taken = guarded.with([](fasta::Scanner& scanner) { return scanner.take(); });
    return py::make_tuple(to_array<std::int64_t>(std::move(taken.id_offsets)),
                          to_array<std::uint8_t>(std::move(taken.ids)),
                          to_array<std::int64_t>(std::move(taken.lengths)),
                          to_array<std::int64_t>(std::move(taken.begins)));
}

py::object new_text(PyObject* text) {
    if (text == nullptr) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::object>(text);
}

// Returns a str from ASCII characters, without validating them.
py::object to_ascii(std::string_view letters) {
    py::object text = new_text(PyUnicode_New(static_cast<py::ssize_t>(letters.size()), 127));
    std::ranges::copy(letters, static_cast<char*>(PyUnicode_DATA(text.ptr())));
    return text;
}

py::list take_records(Guarded& guarded) {
    const fasta::Records taken =
        guarded.with([](fasta::Scanner& scanner) { return scanner.take(); });
    // Appended to, since what the collector runs could read items that are still null.
    py::list records;
    std::string_view residues = taken.residues;
    for (std::size_t i = 0; i < taken.lengths.size(); ++i) {
        const auto begin = static_cast<std::size_t>(taken.id_offsets[i]);
        const auto end = static_cast<std::size_t>(taken.id_offsets[i + 1]);
        const auto length = static_cast<std::size_t>(taken.lengths[i]);
        const py::object id = new_text(PyUnicode_DecodeUTF8(
            taken.ids.data() + begin, static_cast<py::ssize_t>(end - begin), "strict"));
        records.append(py::make_tuple(id, to_ascii(residues.substr(0, length))));
        residues.remove_prefix(length);
    }
    return records;
}

py::object fault_of(Guarded& guarded) {
    return guarded.with([](const fasta::Scanner& scanner) -> py::object {
        if (!scanner.fault()) {
            return py::none();
        }
        const fasta::Fault& fault = *scanner.fault();
        return py::make_tuple(fault.line, fault.record, py::bytes(fault.id), fault.reason);
    });
}

py::tuple changes_of(Guarded& guarded) {
    return guarded.with([](const fasta::Scanner& scanner) {
        const fasta::Changes& changes = scanner.changes();
        return py::make_tuple(changes.stops, changes.lower_case, changes.gaps, changes.insertions);
    });
}

}  // namespace

void add_scanner(py::module_& module) {
    const auto type = py::class_<Guarded>(module, "FastaScanner")
                          .def(
                              "feed",
                              [](Guarded& guarded, const py::object& piece) {
                                  const Bytes bytes(piece);
                                  guarded.with([&](fasta::Scanner& scanner) {
                                      const py::gil_scoped_release release;
                                      scanner.feed(bytes.text());
                                  });
                              },
                              py::arg("piece"))
                          .def("finish",
                               [](Guarded& guarded) {
                                   guarded.with([](fasta::Scanner& scanner) { scanner.finish(); });
                               })
                          .def("take_lengths", &take_lengths)
                          .def("take_records", &take_records)
                          .def_property_readonly("fault", &fault_of)
                          .def_property_readonly("changes", &changes_of);
    seal(type);
    module.def(
        "make_scanner",
        [](bool strip_stop, bool uppercase, bool drop_gaps, bool keep_residues) {
            return std::make_unique<Guarded>(fasta::Options{strip_stop, uppercase, drop_gaps},
                                             keep_residues);
        },
        py::arg("strip_stop"), py::arg("uppercase"), py::arg("drop_gaps"),
        py::arg("keep_residues"));
}
