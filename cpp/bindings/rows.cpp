#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/families.hpp"
#include "packing/assign.hpp"
#include "packing/hashes.hpp"
#include "packing/ids.hpp"
#include "packing/layout.hpp"

namespace py = pybind11;
using namespace packing;

namespace {

// Returns the texts of a tuple of str, valid as long as the tuple.
std::vector<Text> texts_of(const py::tuple& ids) {
    std::vector<Text> texts;
    texts.reserve(ids.size());
    for (const py::handle& id : ids) {
        if (!PyUnicode_Check(id.ptr())) {
            throw py::type_error("ids must be str");
        }
#if PY_VERSION_HEX < 0x030C0000
        if (PyUnicode_READY(id.ptr()) != 0) {
            throw py::error_already_set();
        }
#endif
        texts.emplace_back(PyUnicode_DATA(id.ptr()),
                           static_cast<std::uint64_t>(PyUnicode_GET_LENGTH(id.ptr())),
                           static_cast<unsigned>(PyUnicode_KIND(id.ptr())));
    }
    return texts;
}

// Returns the texts of a fixed-width array, without trailing NULs.
std::vector<Text> texts_of(const py::array& ids) {
    const auto width = static_cast<std::size_t>(ids.itemsize()) / sizeof(Py_UCS4);
    const auto* text = static_cast<const Py_UCS4*>(ids.data());
    std::vector<Text> texts(static_cast<std::size_t>(ids.size()));
    for (Text& to : texts) {
        std::size_t length = width;
        while (length > 0 && text[length - 1] == 0) {
            --length;
        }
        to = Text(text, length, 4);
        text += width;
    }
    return texts;
}

// Returns the texts bytes[offsets[i]:offsets[i + 1]] in UTF-8, which sorts by bytes as by code
// points.
std::vector<Text> texts_of(const py::array& offsets, const py::array& bytes) {
    require_plain(offsets, "the offsets of ids");
    require_plain(bytes, "the bytes of ids");
    if (offsets.dtype().kind() != 'i' || offsets.itemsize() != 8 || offsets.size() == 0 ||
        bytes.itemsize() != 1) {
        throw py::type_error("ids must be int64 offsets and bytes");
    }
    const std::span ends = view<std::int64_t>(offsets);
    const auto* const first = static_cast<const std::uint8_t*>(bytes.data());
    std::vector<Text> texts;
    texts.reserve(ends.size() - 1);
    for (std::size_t i = 0; i + 1 < ends.size(); ++i) {
        const std::int64_t begin = ends[i];
        const std::int64_t end = ends[i + 1];
        if (begin < 0 || begin > end || end > bytes.size()) {
            throw py::value_error("the offsets of ids are out of range");
        }
        texts.emplace_back(first + begin, static_cast<std::uint64_t>(end - begin), 1U);
    }
    return texts;
}

// Calls use(ids) with IDs from None, a tuple of str, a pair of offsets and bytes in UTF-8, or an
// array of int64 or fixed-width strings.
template <class Use>
void with_ids(const py::object& ids, const Use& use) {
    if (ids.is_none()) {
        use(Ids{});
        return;
    }
    const auto* const pair = ids.ptr();
    if (PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
        py::isinstance<py::array>(PyTuple_GET_ITEM(pair, 0))) {
        const auto [offsets, bytes] = py::cast<std::pair<py::array, py::array>>(ids);
        const std::vector<Text> texts = texts_of(offsets, bytes);
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    if (py::isinstance<py::tuple>(ids)) {
        const std::vector<Text> texts = texts_of(py::reinterpret_borrow<py::tuple>(ids));
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    const auto array = py::cast<py::array>(ids);
    require_plain(array, "ids");
    if (array.dtype().kind() == 'U') {
        const std::vector<Text> texts = texts_of(array);
        use(Ids{std::span<const Text>(texts)});
        return;
    }
    if (array.dtype().kind() != 'i' || array.itemsize() != 8) {
        throw py::type_error("ids must be int64");
    }
    use(Ids{view<std::int64_t>(array)});
}

template <class Row, class Length>
py::tuple list_rows_as(const Layout& layout, std::span<const Length> lengths, const py::object& ids,
                       int num_threads) {
    py::array_t<Row> rows(static_cast<py::ssize_t>(lengths.size()));
    py::array_t<Row> scratch(ids.is_none() ? rows.size() : 0);
    py::array_t<std::int64_t> offsets(layout.num_batches + 1);
    with_ids(ids, [&](const Ids& order) {
        const std::span to = mutable_view<Row>(rows);
        const std::span room = mutable_view<Row>(scratch);
        const std::span starts = mutable_view<std::int64_t>(offsets);
        const py::gil_scoped_release release;
        list_rows(layout, lengths, order, room, to, starts, num_threads);
    });
    return py::make_tuple(rows, offsets);
}

template <class Row>
py::array shuffle_rows_as(const Layout& layout, const py::array& rows, std::uint64_t seed,
                          int num_threads) {
    py::array_t<Row> shuffled(rows.size());
    py::array_t<Row> scratch(rows.size());
    const std::span to = mutable_view<Row>(shuffled);
    const std::span room = mutable_view<Row>(scratch);
    {
        const py::gil_scoped_release release;
        shuffle_rows(layout, view<Row>(rows), seed, room, to, num_threads);
    }
    return shuffled;
}

}  // namespace

void add_rows(py::module_& module) {
    const auto assign_to = [](Place place) {
        return [place](const Layout& layout, const py::array& lengths, const TokenCounts* before,
                       py::array& out, int num_threads) {
            TokenCounts none;
            none.limits = layout.limits();
            with_lengths(lengths, [&](auto span) {
                with_number(out, "out", [&]<class Number>(Number) {
                    const std::span numbers = mutable_view<Number>(out);
                    const py::gil_scoped_release release;
                    assign(layout, span, before == nullptr ? none : *before, place, numbers,
                           num_threads);
                });
            });
        };
    };
    module.def("assign_batches", assign_to(Place::batch), py::arg("layout"), py::arg("lengths"),
               py::arg("before"), py::arg("out"), py::arg("num_threads"));
    module.def("assign_slots", assign_to(Place::slot), py::arg("layout"), py::arg("lengths"),
               py::arg("before"), py::arg("out"), py::arg("num_threads"));

    module.def(
        "list_rows",
        [](const Layout& layout, const py::array& lengths, const py::object& ids, int num_threads) {
            return with_lengths(lengths, [&](auto span) -> py::tuple {
                const bool is_narrow =
                    span.size() <= std::size_t{std::numeric_limits<std::int32_t>::max()};
                return is_narrow ? list_rows_as<std::int32_t>(layout, span, ids, num_threads)
                                 : list_rows_as<std::int64_t>(layout, span, ids, num_threads);
            });
        },
        py::arg("layout"), py::arg("lengths"), py::arg("ids"), py::arg("num_threads"));

    module.def(
        "hash_texts",
        [](const py::array& offsets, const py::array& texts) {
            const std::vector<Text> each = texts_of(offsets, texts);
            py::array_t<std::uint64_t> hashes(static_cast<py::ssize_t>(each.size()));
            const std::span to = mutable_view<std::uint64_t>(hashes);
            {
                const py::gil_scoped_release release;
                hash_texts(each, to);
            }
            return hashes;
        },
        py::arg("offsets"), py::arg("texts"));

    module.def(
        "shuffle_rows",
        [](const Layout& layout, const py::array& rows, std::uint64_t seed, int num_threads) {
            return with_number(rows, "rows", [&]<class Row>(Row) {
                return shuffle_rows_as<Row>(layout, rows, seed, num_threads);
            });
        },
        py::arg("layout"), py::arg("rows"), py::arg("seed"), py::arg("num_threads"));
}
