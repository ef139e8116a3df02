#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fasta {

// What becomes of characters that are residues to some readers and not to others.
struct Options {
    // Leave out each '*' at the end of a sequence.
    bool strip_stop = true;
    // Take lower case for soft-masked residues and return upper case.
    bool uppercase = true;
    // Leave out '-' and '.', and lower case that is not made upper case: the insertions of A3M.
    bool drop_gaps = false;
};

// How many characters were changed or left out.
struct Changes {
    std::int64_t stops = 0;
    std::int64_t lower_case = 0;
    std::int64_t gaps = 0;
    std::int64_t insertions = 0;

    bool operator==(const Changes&) const = default;
};

// Complete records, in order.
struct Records {
    // Where each ID begins in `ids` (UTF-8), and the end.
    std::vector<std::int64_t> id_offsets{0};
    std::string ids;
    // Residues of each record.
    std::vector<std::int64_t> lengths;
    // Where the '>' of each record stands in the text, in bytes.
    std::vector<std::int64_t> begins;
    // The residues end to end (ASCII), if they are kept.
    std::string residues;

    bool operator==(const Records&) const = default;
};

// The first thing in a text that is not FASTA. Lines and records are numbered from 1; `record` is
// that of the record it is in, 0 before the first, and `line` 0 for the text as a whole.
struct Fault {
    std::int64_t line;
    std::int64_t record;
    std::string id;
    std::string reason;

    bool operator==(const Fault&) const = default;
};

// Takes the text of a FASTA file apart, piece by piece.
//
// A record is a line that begins with '>' and the lines up to the next one. Its ID is the first
// word of that line, in UTF-8. Its residues are the ASCII letters, '*', '-' and '.' of the other
// lines; blanks, blank lines and line ends (LF or CR LF) are no part of them, and all else is a
// fault. A byte order mark before the first record is skipped. How the text is cut into pieces
// changes nothing.
//
// Cost: O(bytes). After std::bad_alloc a scanner is of no use.
class Scanner {
  public:
    Scanner(const Options& options, bool keep_residues)
        : options_(options), keep_residues_(keep_residues) {}

    // Scans the next piece of the text, up to the first fault.
    void feed(std::string_view piece);

    // Ends the text, and with it the last record.
    void finish();

    // Returns the complete records that have not been taken yet.
    Records take();

    const std::optional<Fault>& fault() const { return fault_; }
    const Changes& changes() const { return changes_; }

  private:
    // Before the first record; between '>' and the ID; in the ID; behind it; in the sequence.
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
    // Bytes scanned, lines and records begun.
    std::int64_t position_ = 0;
    std::int64_t line_ = 1;
    std::int64_t record_ = 0;
    // The line that is a title if the record at hand is of PIR, which is no FASTA.
    std::int64_t title_line_ = 0;
    // Bytes of the byte order mark that have been seen.
    std::int64_t mark_ = 0;
    // Of the record at hand: its residues, and how many '*' they end with.
    std::int64_t length_ = 0;
    std::int64_t trailing_stops_ = 0;
    // With the record at hand, which has no length yet.
    Records records_;
    Changes changes_;
    std::optional<Fault> fault_;
};

// Whether bytes are UTF-8 (RFC 3629): no surrogates, nothing overlong.
bool is_utf8(std::string_view text);

}  // namespace fasta
