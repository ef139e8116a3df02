// Fuzzes the scanner of FASTA: the same for any pieces, nothing lost, and each record by itself is
// what it is in the text.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fasta/scanner.hpp"
#include "tests/bytes.hpp"

using fasta::Changes;
using fasta::Options;
using fasta::Records;
using fasta::Scanner;

namespace {

void require(bool holds, const char* what) {
    if (!holds) {
        std::fprintf(stderr, "%s\n", what);
        std::abort();
    }
}

void append(Records& to, const Records& from) {
    const auto ids = static_cast<std::int64_t>(to.ids.size());
    for (std::size_t i = 1; i < from.id_offsets.size(); ++i) {
        to.id_offsets.push_back(ids + from.id_offsets[i]);
    }
    to.ids += from.ids;
    to.lengths.insert(to.lengths.end(), from.lengths.begin(), from.lengths.end());
    to.begins.insert(to.begins.end(), from.begins.begin(), from.begins.end());
    to.residues += from.residues;
}

std::int64_t sum(const Changes& changes) {
    return changes.stops + changes.gaps + changes.insertions;
}

// Scans a text in pieces of at most so many bytes, taking records now and then.
Records scan(Scanner& scanner, std::string_view text, packing::Bytes& cuts, std::int64_t most) {
    Records records;
    while (!text.empty()) {
        const auto size = std::min(text.size(), static_cast<std::size_t>(1 + cuts.below(most)));
        scanner.feed(text.substr(0, size));
        text.remove_prefix(size);
        if (cuts.below(2) == 0) {
            append(records, scanner.take());
        }
    }
    scanner.finish();
    append(records, scanner.take());
    return records;
}

// Characters of lines without '>' that are letters, '*', '-' or '.'.
std::int64_t count_residues(std::string_view text) {
    std::int64_t number = 0;
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find('\n'));
        if (!line.starts_with('>') && !line.starts_with("\xef\xbb\xbf>")) {
            number += std::ranges::count_if(line, [](char c) {
                return std::string_view("*-.").find(c) != std::string_view::npos ||
                       (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
            });
        }
        text.remove_prefix(std::min(text.size(), line.size() + 1));
    }
    return number;
}

void check_residues(const Records& records, const Options& options) {
    for (const char c : records.residues) {
        const bool is_lower = c >= 'a' && c <= 'z';
        require((c >= 'A' && c <= 'Z') || (is_lower && !options.uppercase && !options.drop_gaps) ||
                    c == '*' || ((c == '-' || c == '.') && !options.drop_gaps),
                "a character that is no residue");
    }
    std::string_view left = records.residues;
    for (const std::int64_t length : records.lengths) {
        require(length >= 0 && static_cast<std::size_t>(length) <= left.size(), "a length");
        const std::string_view sequence = left.substr(0, static_cast<std::size_t>(length));
        require(!options.strip_stop || !sequence.ends_with('*'), "a stop");
        left.remove_prefix(sequence.size());
    }
    require(left.empty(), "residues without a record");
}

// What lies between the begins of two records is one record, the same as in the whole.
void check_alone(const Records& records, std::string_view text, const Options& options) {
    std::string_view residues = records.residues;
    for (std::size_t i = 0; i < records.lengths.size(); ++i) {
        const auto begin = static_cast<std::size_t>(records.begins[i]);
        const std::size_t end = i + 1 < records.begins.size()
                                    ? static_cast<std::size_t>(records.begins[i + 1])
                                    : text.size();
        require(begin < end && end <= text.size() && text[begin] == '>', "a begin");
        Scanner alone(options, true);
        alone.feed(text.substr(begin, end - begin));
        alone.feed("\n");
        alone.finish();
        const Records found = alone.take();
        const auto id = static_cast<std::size_t>(records.id_offsets[i]);
        const auto id_end = static_cast<std::size_t>(records.id_offsets[i + 1]);
        const auto length = static_cast<std::size_t>(records.lengths[i]);
        require(!alone.fault() && found.lengths.size() == 1, "a record alone is none");
        require(found.ids == std::string_view(records.ids).substr(id, id_end - id), "another ID");
        require(found.residues == residues.substr(0, length), "other residues");
        residues.remove_prefix(length);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::uint8_t flags = data[0];
    const Options options{(flags & 1U) != 0, (flags & 2U) != 0, (flags & 4U) != 0};
    const std::string text(data + 1, data + size);
    Scanner whole(options, true);
    whole.feed(text);
    whole.finish();
    const Records records = whole.take();
    // The text's own bytes say where it is cut.
    for (const std::int64_t most : {1, 3, 1 << 8}) {
        packing::Bytes cuts(data, size);
        Scanner pieces(options, true);
        require(scan(pieces, text, cuts, most) == records, "pieces give other records");
        require(pieces.fault() == whole.fault(), "pieces give another fault");
        require(pieces.changes() == whole.changes(), "pieces give other changes");
    }
    packing::Bytes cuts(data, size);
    Scanner lengths(options, false);
    Records counted = scan(lengths, text, cuts, 1 << 8);
    require(counted.residues.empty(), "residues that were not asked for");
    counted.residues = records.residues;
    require(counted == records, "without residues other records");
    check_residues(records, options);
    if (!whole.fault()) {
        check_alone(records, text, options);
        require(static_cast<std::int64_t>(records.residues.size()) + sum(whole.changes()) ==
                    count_residues(text),
                "a residue was lost");
    }
    // After the end nothing changes any more.
    whole.feed(">more\nM\n");
    whole.finish();
    require(whole.take().lengths.empty(), "records after the end");
    return 0;
}
