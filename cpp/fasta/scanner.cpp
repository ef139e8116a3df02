#include "fasta/scanner.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace fasta {

namespace {

constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
constexpr auto mark_size = static_cast<std::int64_t>(byte_order_mark.size());
constexpr std::array<std::string_view, 9> pir_types = {"P1;", "F1;", "DL;", "DC;", "RL;",
                                                       "RC;", "N1;", "N3;", "XX;"};
constexpr const char* cr_alone = "lines that end with CR alone";

enum class Kind : std::uint8_t { other, upper, lower, stop, gap, blank };

consteval std::array<Kind, 256> make_kinds() {
    std::array<Kind, 256> kinds{};
    const auto set = [&](std::string_view characters, Kind kind) {
        for (const char c : characters) {
            kinds[static_cast<unsigned char>(c)] = kind;
        }
    };
    set("ABCDEFGHIJKLMNOPQRSTUVWXYZ", Kind::upper);
    set("abcdefghijklmnopqrstuvwxyz", Kind::lower);
    set("*", Kind::stop);
    set("-.", Kind::gap);
    set(" \t\v\f", Kind::blank);
    return kinds;
}

constexpr std::array<Kind, 256> kinds = make_kinds();

Kind kind_of(char c) { return kinds[static_cast<unsigned char>(c)]; }

bool is_blank(char c) { return kind_of(c) == Kind::blank; }

constexpr char to_upper(char letter) { return static_cast<char>(letter & ~0x20); }

constexpr bool is_lower(char letter) { return (letter & 0x20) != 0; }

struct Letters {
    bool are_all;
    bool any_lower;
};

// Checks whether a text consists of ASCII letters, eight bytes at a time: no byte has its high bit
// set, and each is between 'a' and 'z' when converted to lower case. A carry into the next byte
// occurs only if a byte is not a letter.
Letters find_letters(std::string_view text) {
    constexpr std::uint64_t ones = 0x0101010101010101;
    constexpr std::uint64_t case_bits = ones << 5;
    std::uint64_t wrong = 0;
    std::uint64_t lower = 0;
    const auto check = [&](const char* first, std::size_t size) {
        std::uint64_t bytes = ones * 'A';
        std::memcpy(&bytes, first, size);
        const std::uint64_t folded = bytes | case_bits;
        wrong |= bytes | ~(folded + ones * (0x80 - 'a')) | (folded + ones * (0x7f - 'z'));
        lower |= bytes & case_bits;
    };
    std::size_t at = 0;
    for (; text.size() - at >= 8; at += 8) {
        check(text.data() + at, 8);
    }
    if (text.size() >= 8) {
        check(text.data() + text.size() - 8, 8);
    } else {
        check(text.data(), text.size());
    }
    return {(wrong & (ones << 7)) == 0, lower != 0};
}

std::string describe(char c) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
        return std::string("'") + c + "'";
    }
    constexpr std::string_view digits = "0123456789abcdef";
    return std::string("the byte 0x") + digits[byte >> 4] + digits[byte & 15];
}

}  // namespace

void Scanner::feed(std::string_view piece) {
    if (is_finished_ || fault_) {
        return;
    }
    const std::int64_t begin = position_;
    position_ += static_cast<std::int64_t>(piece.size());
    std::size_t at = 0;
    const auto here = [&] { return begin + static_cast<std::int64_t>(at); };
    while (at < piece.size() && mark_ == here() && mark_ < mark_size &&
           piece[at] == byte_order_mark[static_cast<std::size_t>(mark_)]) {
        ++mark_;
        ++at;
    }
    if (at < piece.size() && mark_ > 0 && mark_ < mark_size) {
        refuse_start(byte_order_mark.front());
    }
    while (at < piece.size() && !fault_) {
        const std::size_t end = std::min(piece.find('\n', at), piece.size());
        if (end > at) {
            scan_part(piece.substr(at, end - at), here());
        }
        if (end < piece.size() && !fault_) {
            end_line();
        }
        at = end + 1;
    }
}

void Scanner::finish() {
    if (is_finished_ || fault_) {
        return;
    }
    is_finished_ = true;
    if (mark_ > 0 && mark_ < mark_size) {
        refuse_start(byte_order_mark.front());
    } else if (place_ == Place::start) {
        line_ = 0;
        refuse(position_ == 0 ? "empty file" : "no records");
    } else if (place_ == Place::mark && at_line_start_ && !after_cr_) {
        refuse("incomplete: the text ends with '>'");
    } else {
        end_id();
        if (!fault_) {
            end_record();
        }
    }
}

Records Scanner::take() {
    if (records_.lengths.empty()) {
        return {};
    }
    Records taken = std::exchange(records_, {});
    if (taken.begins.size() > taken.lengths.size()) {
        // Keep the current record.
        const auto id = static_cast<std::size_t>(taken.id_offsets.back());
        records_.ids = taken.ids.substr(id);
        taken.ids.erase(id);
        records_.begins.push_back(taken.begins.back());
        taken.begins.pop_back();
        if (keep_residues_) {
            const std::size_t begin = taken.residues.size() - static_cast<std::size_t>(length_);
            records_.residues = taken.residues.substr(begin);
            taken.residues.erase(begin);
        }
    }
    return taken;
}

// Scans a line, or part of a line, without the LF at its end.
void Scanner::scan_part(std::string_view part, std::int64_t begin) {
    if (after_cr_) {
        refuse(cr_alone);
        return;
    }
    if (part.back() == '\r') {
        // Valid before LF or at the end of the text; otherwise the next part is refused.
        after_cr_ = true;
        part.remove_suffix(1);
    }
    if (at_line_start_ && part.starts_with('>') &&
        (place_ == Place::start || place_ == Place::sequence)) {
        if (place_ == Place::sequence) {
            end_record();
        }
        begin_record(begin);
        part.remove_prefix(1);
    }
    if (part.empty()) {
        return;
    }
    if (place_ == Place::start) {
        scan_start(part);
    } else if (place_ == Place::sequence) {
        scan_residues(part);
    } else {
        scan_header(part);
    }
    at_line_start_ = false;
}

// Only blanks may precede the first record.
void Scanner::scan_start(std::string_view part) {
    for (const char c : part) {
        if (!is_blank(c)) {
            refuse_start(c);
            return;
        }
    }
}

void Scanner::scan_header(std::string_view part) {
    while (!part.empty() && place_ != Place::description) {
        if (is_blank(part.front())) {
            if (place_ == Place::id) {
                end_id();
                place_ = Place::description;
            }
            part.remove_prefix(1);
            continue;
        }
        const auto ends_id = [](char c) { return is_blank(c) || c == '\0' || c == '\r'; };
        const auto size =
            static_cast<std::size_t>(std::ranges::find_if(part, ends_id) - part.begin());
        if (size == 0) {
            break;
        }
        place_ = Place::id;
        records_.ids.append(part.substr(0, size));
        part.remove_prefix(size);
    }
    const std::size_t nul = part.find('\0');
    const std::size_t cr = part.find('\r');
    if (nul != cr && !fault_) {
        refuse(nul < cr ? "a NUL byte" : cr_alone);
    }
}

void Scanner::scan_residues(std::string_view part) {
    if (line_ == title_line_) {
        while (!part.empty() && is_blank(part.front())) {
            part.remove_prefix(1);
        }
        if (!part.empty()) {
            refuse(part.front() == '\r' ? cr_alone : "the title line of a record in PIR format");
        }
        return;
    }
    const Letters letters = find_letters(part);
    if (!letters.are_all || (letters.any_lower && options_.drop_gaps && !options_.uppercase)) {
        scan_letters(part);
        return;
    }
    length_ += static_cast<std::int64_t>(part.size());
    trailing_stops_ = 0;
    if (keep_residues_) {
        records_.residues.append(part);
    }
    if (letters.any_lower && options_.uppercase) {
        changes_.lower_case += std::ranges::count_if(part, is_lower);
        if (keep_residues_) {
            std::ranges::transform(part, records_.residues.end() - std::ssize(part), to_upper);
        }
    }
}

// Scans residues one by one.
void Scanner::scan_letters(std::string_view part) {
    bool is_first = at_line_start_;
    for (char c : part) {
        bool is_kept = true;
        const Kind kind = kind_of(c);
        switch (kind) {
            case Kind::upper:
            case Kind::stop:
                break;
            case Kind::lower:
                if (options_.uppercase) {
                    c = to_upper(c);
                    ++changes_.lower_case;
                } else if (options_.drop_gaps) {
                    is_kept = false;
                    ++changes_.insertions;
                }
                break;
            case Kind::gap:
                if (options_.drop_gaps) {
                    is_kept = false;
                    ++changes_.gaps;
                }
                break;
            case Kind::blank:
                is_kept = false;
                break;
            default:  // Kind::other
                refuse_residue(c, is_first);
                return;
        }
        is_first = false;
        if (is_kept) {
            ++length_;
            trailing_stops_ = kind == Kind::stop ? trailing_stops_ + 1 : 0;
            if (keep_residues_) {
                records_.residues.push_back(c);
            }
        }
    }
}

void Scanner::end_line() {
    if (place_ != Place::start) {
        end_id();
        place_ = Place::sequence;
    }
    after_cr_ = false;
    at_line_start_ = true;
    ++line_;
}

void Scanner::begin_record(std::int64_t begin) {
    ++record_;
    records_.begins.push_back(begin);
    length_ = 0;
    trailing_stops_ = 0;
    place_ = Place::mark;
}

// Checks the ID, if the scanner is in one.
void Scanner::end_id() {
    if (place_ != Place::id) {
        return;
    }
    const std::string_view id =
        std::string_view(records_.ids).substr(static_cast<std::size_t>(records_.id_offsets.back()));
    if (!is_utf8(id)) {
        refuse("an ID that is not valid UTF-8");
    }
    const auto begins_id = [&](std::string_view type) { return id.starts_with(type); };
    title_line_ = std::ranges::any_of(pir_types, begins_id) ? line_ + 1 : 0;
}

void Scanner::end_record() {
    if (options_.strip_stop && trailing_stops_ > 0) {
        length_ -= trailing_stops_;
        changes_.stops += trailing_stops_;
        if (keep_residues_) {
            const std::size_t size = records_.residues.size();
            records_.residues.erase(size - static_cast<std::size_t>(trailing_stops_));
        }
    }
    records_.id_offsets.push_back(static_cast<std::int64_t>(records_.ids.size()));
    records_.lengths.push_back(length_);
}

void Scanner::refuse(std::string reason) {
    const auto begin = static_cast<std::size_t>(records_.id_offsets.back());
    fault_ = Fault{line_, record_, records_.ids.substr(begin), std::move(reason)};
}

void Scanner::refuse_start(char c) {
    if (c == '\r') {
        refuse(cr_alone);
    } else if (c == '>') {
        refuse("a '>' that does not begin its line");
    } else {
        refuse("the text begins with " + describe(c) + ", not with '>'" +
               (c == '@' ? ": FASTQ?" : ""));
    }
}

void Scanner::refuse_residue(char c, bool is_first) {
    if (c == '\0') {
        refuse("a NUL byte");
    } else if (c == '\r') {
        refuse(cr_alone);
    } else if (c == '>') {
        refuse("a '>' in a sequence; is a line end missing before it?");
    } else if (c >= '0' && c <= '9') {
        refuse("a digit in a sequence (" + describe(c) + ")");
    } else if (is_first && c == ';') {
        refuse("a line that begins with ';': a comment?");
    } else if (is_first && c == '/') {
        refuse("a line that begins with '/': the end of a record in another format?");
    } else if (is_first && (c == '@' || c == '+')) {
        refuse("a line that begins with " + describe(c) + ": FASTQ?");
    } else {
        refuse("an invalid character (" + describe(c) + ")");
    }
}

bool is_utf8(std::string_view text) {
    std::size_t at = 0;
    while (at < text.size()) {
        const auto lead = static_cast<unsigned char>(text[at++]);
        if (lead < 0x80) {
            continue;
        }
        std::size_t more = 1;
        if (lead >= 0xe0) {
            more = lead >= 0xf0 ? 3 : 2;
        }
        if (lead < 0xc2 || lead > 0xf4 || text.size() - at < more) {
            return false;
        }
        // The range of the second byte excludes overlong forms, surrogates and values above
        // U+10FFFF.
        unsigned char least = 0x80;
        unsigned char most = 0xbf;
        if (lead == 0xe0) {
            least = 0xa0;
        } else if (lead == 0xed) {
            most = 0x9f;
        } else if (lead == 0xf0) {
            least = 0x90;
        } else if (lead == 0xf4) {
            most = 0x8f;
        }
        for (std::size_t i = 0; i < more; ++i) {
            const auto byte = static_cast<unsigned char>(text[at++]);
            if (byte < least || byte > most) {
                return false;
            }
            least = 0x80;
            most = 0xbf;
        }
    }
    return true;
}

}  // namespace fasta
