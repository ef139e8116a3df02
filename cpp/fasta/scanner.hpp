#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fasta {

// How to handle characters that only some readers count as residues.
struct Options {
    // Remove each '*' at the end of a sequence.
    bool strip_stop = true;
    // Convert lower case, which is taken to be soft-masking, to upper case.
    bool uppercase = true;
    // Remove '-' and '.', and lower case that is not converted (insertions in A3M).
    bool drop_gaps = false;
};

// The number of characters changed or removed.
struct Changes {
    std::int64_t stops = 0;
    std::int64_t lower_case = 0;
    std::int64_t gaps = 0;
    std::int64_t insertions = 0;

    bool operator==(const Changes&) const = default;
};

// Complete records, in order.
struct Records {
    // Offset of each ID in `ids` (UTF-8), and the end of the last.
    std::vector<std::int64_t> id_offsets{0};
    std::string ids;
    // Number of residues of each record.
    std::vector<std::int64_t> lengths;
    // Offset of the '>' of each record in the text, in bytes.
    std::vector<std::int64_t> begins;
    // The concatenated residues (ASCII), if they are kept.
    std::string residues;

    bool operator==(const Records&) const = default;
};

// The first error in a text. Lines and records are numbered from 1. `record` is 0 before the first
// record, and `line` is 0 if the error concerns the whole text.
struct Fault {
    std::int64_t line;
    std::int64_t record;
    std::string id;
    std::string reason;

    bool operator==(const Fault&) const = default;
};

// Parses the text of a FASTA file, given in pieces.
//
// A record is a line that begins with '>' and the lines up to the next one. Its ID is the first
// word of that line, in UTF-8. Its residues are the ASCII letters, '*', '-' and '.' of the other
// lines. Blanks, blank lines and line ends (LF or CR LF) are ignored; any other character is a
// fault. A byte order mark before the first record is skipped. The result does not depend on how
// the text is divided into pieces.
//
// Cost: O(bytes). A scanner must not be used after std::bad_alloc.
class Scanner {
  public:
    Scanner(const Options& options, bool keep_residues)
        : options_(options), keep_residues_(keep_residues) {}

    // Scans the next piece of the text, up to the first fault.
    void feed(std::string_view piece);

    // Ends the text, and with it the last record.
    void finish();

    // Returns the complete records since the last call.
    Records take();

    const std::optional<Fault>& fault() const { return fault_; }
    const Changes& changes() const { return changes_; }

  private:
    // Before the first record; between '>' and the ID; in the ID; after it; in the sequence.
    enum class Place : std::uint8_t { start, mark, id, description, sequence };

    void scan_part(std::string_view part, std::int64_t begin);
    void scan_start(std::string_view part);
    void scan_header(std::string_view part);
    void scan_residues(std::string_view part);
    void scan_letters(std::string_view part);
    void end_line();
    void begin_record(std::int64_t begin);
    void end_id();
    void end_record();
    void refuse(std::string reason);
    void refuse_start(char c);
    void refuse_residue(char c, bool is_first);

    Options options_;
    bool keep_residues_;
    Place place_ = Place::start;
    bool at_line_start_ = true;
    bool after_cr_ = false;
    bool is_finished_ = false;
    // Number of bytes scanned, and the numbers of the current line and record.
    std::int64_t position_ = 0;
    std::int64_t line_ = 1;
    std::int64_t record_ = 0;
    // The number of the title line if the current record seems to be in PIR format, otherwise 0.
    std::int64_t title_line_ = 0;
    // Number of bytes of the byte order mark scanned.
    std::int64_t mark_ = 0;
    // Number of residues of the current record, and of trailing '*' among them.
    std::int64_t length_ = 0;
    std::int64_t trailing_stops_ = 0;
    // Includes the current record, which has no length yet.
    Records records_;
    Changes changes_;
    std::optional<Fault> fault_;
};

// Whether bytes are valid UTF-8 (RFC 3629), without surrogates and overlong forms.
bool is_utf8(std::string_view text);

}  // namespace fasta
