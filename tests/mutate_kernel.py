"""Plants mutations in the kernel, one at a time, and tells which of them its tests let live.

Usage: mutate_kernel.py [--check] [WORD]

With WORD, only mutations whose file or text contains the word. Each is built from a copy of cpp/ in
build/mutation. The exit status is 1 if fewer than 90 % are killed. With --check, nothing is built:
the exit status is 1 if a mutation's text does not occur exactly once in its file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPY = ROOT / "build" / "mutation"
# The programs that must fail, with few random cases, each of which is cut into parts for threads.
COMMANDS = [["packing_test", "300", "0", "1"], ["allocation_test"]]

# The file, a text that occurs once in it, and its replacement.
MUTATIONS = [
    # Sums, and those that do not fit.
    ("checked.hpp", "if (a > std::numeric_limits<std::int64_t>::max() - b)", "if (false)"),
    ("checked.hpp", "(a > std::numeric_limits", "(a >= std::numeric_limits"),
    ("checked.hpp", "a > std::numeric_limits<std::int64_t>::max() / b", "false"),
    ("checked.hpp", "a > std::numeric_limits<std::int64_t>::max() / b", "a >= INT64_MAX / b"),
    ("checked.hpp", "a % b == 0 ? 0 : 1", "a % b <= 1 ? 0 : 1"),
    # Parts for threads.
    ("parallel.hpp", "std::min(i, num_items % parts)", "0"),
    ("parallel.hpp", "num_items / parts * i", "num_items / parts"),
    ("parallel.hpp", "std::max<std::size_t>(1, num_items / threads.min_part)", "0"),
    ("parallel.hpp", "own(part);", ""),
    # Limits.
    ("limits.hpp", "std::min(max_sequence_length, max_tokens", "std::max(INT64_C(0), max_tokens"),
    ("limits.hpp", "- unusable - special_tokens", "- unusable"),
    ("limits.hpp", "- unusable - special_tokens", "- special_tokens"),
    ("limits.hpp", "tokens + (multiple_of - 1)", "tokens + multiple_of"),
    ("limits.hpp", "tokens + (multiple_of - 1)", "tokens"),
    ("limits.hpp", "std::min(length, max_residues()) + special_tokens", "length + special_tokens"),
    ("limits.hpp", "max_residues() == other.max_residues() && ", ""),
    ("limits.hpp", " && special_tokens == other.special_tokens", ""),
    ("limits.hpp", " &&\n               multiple_of == other.multiple_of", ""),
    ("limits.hpp", "max_tokens_per_batch > max_tokens", "false"),
    ("limits.hpp", "special_tokens < 0", "false"),
    (
        "limits.hpp",
        "special_tokens >= max_tokens_per_batch",
        "special_tokens > max_tokens_per_batch",
    ),
    ("limits.hpp", "max_sequence_length < 1", "max_sequence_length < 0"),
    ("limits.hpp", "max_sequences_per_batch < 1", "max_sequences_per_batch < 0"),
    ("limits.hpp", "max_tokens_per_batch - max_tokens_per_batch % multiple_of", "max_tokens"),
    ("counts.cpp", "limits.validate();\n    require_same", "require_same"),
    ("counts.cpp", "require_same_tokens(counts.limits, limits);", ""),
    ("counts.cpp", "counts.limits = limits;\n    return counts;", "return counts;"),
    # Some of the sequences.
    ("counts.cpp", "sequences.size() != counts.tokens.size()", "false"),
    ("counts.cpp", "sequences[size] < 0 || ", ""),
    ("counts.cpp", "sequences[size] > counts.sequences[size]", "false"),
    ("counts.cpp", "if (sequences[size] > 0) {", "if (sequences[size] >= 0) {"),
    ("counts.cpp", "result.limits = counts.limits;", ""),
    # Counting.
    ("counts.cpp", "has_negative = has_negative || bits < 0;", ""),
    ("counts.cpp", "has_negative = has_negative || other.has_negative;", ""),
    ("counts.cpp", "carries += excess < removed ? 1 : 0;", ""),
    ("counts.cpp", "carries += truncated < residues ? 1 : 0;", ""),
    ("counts.cpp", "carries += other.carries;", ""),
    ("counts.cpp", "found.carries > 0 || found.truncated > largest", "found.carries > 0"),
    ("counts.cpp", "if (length > limit) {", "if (length >= limit) {"),
    ("counts.cpp", "counts.tokens.back() == tokens", "false"),
    ("counts.cpp", "if (total[length] > 0)", "if (total[length] > 1)"),
    ("counts.cpp", "DenseBins{limit + 1}", "DenseBins{limit}"),
    ("counts.cpp", "std::min(as_unsigned(std::ranges::max(lengths)), limit + 1)", "limit"),
    ("counts.cpp", "*first, last - first", "*first, 1"),
    ("counts.cpp", "if (tokens > real) {", "if (tokens > real + 1) {"),
    ("counts.cpp", "tokens - std::min(tokens, limits.real_tokens(unlimited))", "0"),
    ("counts.cpp", "limits.multiple_of - 1, tokens", "limits.multiple_of, tokens"),
    ("counts.cpp", "(size == 0 ? num_truncated : 0)", "0"),
    ("counts.cpp", "size == limits.round_up(size)", "true"),
    ("counts.cpp", "return total - padding_tokens;", "return total;"),
    ("counts.cpp", "a.tokens[i] >= b.tokens[j]", "a.tokens[i] > b.tokens[j]"),
    ("counts.cpp", "sum.num_sequences();", ""),
    ("counts.cpp", "require_same_tokens(a.limits, b.limits);", ""),
    ("counts.cpp", "sum.limits = a.limits;", ""),
    ("counts.cpp", "truncated_residues >= num_truncated", "truncated_residues >= 0"),
    ("counts.cpp", "has_longest ? sequences.front() : 0", "has_longest ? max_tokens : 0"),
    ("histogram.hpp", "num_tables_ * num_bins) {}", "num_tables_ * num_bins, 1) {}"),
    ("histogram.hpp", "i < all.size(); i += num_bins_", "i < num_bins_; i += num_bins_"),
    ("histogram.hpp", "std::min(largest + 1, limits.max_residues())", "largest"),
    ("histogram.hpp", "found != tokens.end() && *found >= least", "found != tokens.end()"),
    ("histogram.hpp", "least + (multiple_of - 1)", "least + multiple_of"),
    ("histogram.hpp", "is_small && limits.multiple_of == 1", "is_small"),
    ("histogram.hpp", "bins.size() - 1", "bins.size() - 2"),
    ("histogram.hpp", "std::min(as_unsigned(length), max_residues)", "as_unsigned(length)"),
    # First-fit decreasing on counts.
    ("layout.cpp", "group.num_sequences == max_sequences_", "false"),
    ("layout.cpp", "lower_bound(rest, free_tokens", "upper_bound(rest, free_tokens"),
    ("layout.cpp", "std::max(size_, largest_fitting_", "std::max(0UL, largest_fitting_"),
    ("layout.cpp", "pop_heap(open_, std::greater{}", "pop_heap(open_, std::less{}"),
    ("layout.cpp", "i != none; i = nodes_[i].next", "i != none; i = none"),
    ("layout.cpp", "std::exchange(waiting_[size], node)", "none; waiting_[size] = node"),
    ("layout.cpp", "free_nodes_.push_back(node);", "free_nodes_.push_back(0);"),
    ("layout.cpp", "tokens == 0                      ? left", "tokens == 0 ? 1"),
    ("layout.cpp", "std::min(fit, max_sequences - num_sequences)", "std::min(fit, max_sequences)"),
    ("layout.cpp", "1 : ceil_divide(left, fit)", "1 : left / fit + 1"),
    ("layout.cpp", "fill(rest > 0 ? 1 : 0, rest);", ""),
    ("layout.cpp", "fill(group.num_batches, 0);", ""),
    ("layout.cpp", "group.first_batch += num_batches;", ""),
    ("layout.cpp", "free_tokens - per_batch * tokens", "free_tokens - tokens"),
    ("layout.cpp", "group.num_sequences + per_batch}", "group.num_sequences + 1}"),
    ("layout.cpp", "{placed, group.first_batch", "{0, group.first_batch"),
    # Layouts of patterns.
    ("layout.cpp", "-one.sequences", "one.sequences"),
    ("layout.cpp", "least_size = size + 1", "least_size = size"),
    ("layout.cpp", "sequences <= left[size] / num_batches[i]", "true"),
    ("layout.cpp", "sequences <= limits.max_sequences_per_batch - group.num_sequences", "true"),
    ("layout.cpp", "left[size] -= sequences * num_batches[i];", "left[size] -= num_batches[i];"),
    ("layout.cpp", "slot += sequences;\n        }\n        layout", "}\n        layout"),
    ("layout.cpp", "found.second.back() += number;", "found.second.back() = number;"),
    # The lower bound.
    ("layout.cpp", "sizes[half] > budget / 2", "sizes[half] >= budget / 2"),
    (
        "layout.cpp",
        "sizes[large - 1] <= budget - threshold",
        "sizes[large - 1] < budget - threshold",
    ),
    (
        "layout.cpp",
        "small_tokens += threshold * sequences[size];",
        "small_tokens += sizes[size];",
    ),
    ("layout.cpp", "proven_bound < 0 || ", ""),
    ("layout.cpp", "proven_bound > layout.num_batches", "proven_bound >= layout.num_batches"),
    ("layout.cpp", "layout.proven_bound = proven_bound;", ""),
    ("layout.cpp", ", layout.proven_bound})", "})"),
    # Going through a layout.
    ("layout.hpp", "end_of(part) <= batch", "end_of(part) < batch"),
    ("layout.hpp", "std::min(end, end_of(part))", "end"),
    ("batches.cpp", "out[last] -= value;", ""),
    ("batches.cpp", "offsets[batch] += offsets[batch - 1];", ""),
    ("batches.cpp", "first < 0 || first > last", "first > last"),
    ("batches.cpp", "first > last || last > layout.num_batches", "first > last"),
    ("batches.cpp", "run -= run == runs.begin() ? 0 : 1;", ""),
    ("batches.cpp", "std::max(first, run->first_batch)", "run->first_batch"),
    ("batches.cpp", "std::min(last, run->first_batch + run->num_batches)", "last"),
    ("batches.cpp", "places[index(batch)] += run.per_batch;", ""),
    ("layout.cpp", "run.first_sequence == sequences,", "true,"),
    ("layout.cpp", "part.run->first_slot == sequences", "true"),
    ("layout.cpp", "sequences <= limits().max_sequences_per_batch", "true"),
    ("layout.cpp", "tokens <= limits().max_tokens_per_batch", "true"),
    ("layout.cpp", "proven_bound >= 0 && proven_bound <= num_batches", "true"),
    # Places and rows.
    ("assign.cpp", "left == 0 ? 1 : 0", "left <= 1 ? 1 : 0"),
    ("assign.cpp", "+= in_run / run->per_batch", "+= in_run"),
    ("assign.cpp", "-= in_run % run->per_batch", "-= 0"),
    ("assign.cpp", "run.first_slot + run.per_batch", "run.per_batch"),
    (
        "assign.cpp",
        "counts.tokens[size] > before.tokens[i]",
        "counts.tokens[size] >= before.tokens[i]",
    ),
    ("assign.cpp", "counts.sequences[size] < before.sequences[i]", "false"),
    ("assign.cpp", "std::cmp_not_equal(num_counted, histogram.num_lengths())", "false"),
    ("assign.cpp", "counted[size] > layout", "counted[size] >= layout"),
    ("assign.cpp", "+= std::exchange(count, before[size])", "+= count"),
    ("assign.cpp", "if (ends[size] != starts[size + 1])", "if (ends[size] > starts[size + 1])"),
    ("assign.cpp", "positions.counts(part)[bin] != end", "false"),
    ("assign.cpp", "(batch - run.first_batch) * run.per_batch", "0"),
    ("assign.cpp", "left > 1; --left", "left > 2; --left"),
    ("assign.cpp", "SplitMix64(seed)() + size", "size + 1"),
    # Places by size and rank.
    (
        "ranks.cpp",
        "table_.resize(static_cast<std::size_t>(tokens.front()) + 1, tokens.size())",
        "table_.resize(static_cast<std::size_t>(tokens.front()) + 1)",
    ),
    ("ranks.cpp", "table_[static_cast<std::size_t>(tokens[size])] = size;", ""),
    ("ranks.cpp", "as_unsigned(tokens) < table_.size() ?", "true ?"),
    ("ranks.cpp", "found != tokens_.end() && *found == tokens", "found != tokens_.end()"),
    ("ranks.cpp", "upper_bound(runs, rank", "lower_bound(runs, rank"),
    ("ranks.cpp", "ranks.size() != num_rows || ", ""),
    ("ranks.cpp", "batches.size() != num_rows || ", ""),
    ("ranks.cpp", " || slots.size() != num_rows", ""),
    ("ranks.cpp", "num_sequences() > std::numeric_limits<Number>::max()", "num_sequences() < 0"),
    ("ranks.cpp", "size == num_sizes || rank < 0", "rank < 0"),
    ("ranks.cpp", "rank < 0 || ", ""),
    ("ranks.cpp", "rank >= layout.counts.sequences[size]", "rank > layout.counts.sequences[size]"),
    ("ranks.cpp", "in_run < 0 || ", ""),
    ("ranks.cpp", "in_run >= run->num_batches", "in_run > run->num_batches"),
    ("ranks.cpp", "in_run >= run->num_batches * run->per_batch", "false"),
    ("ranks.cpp", "run->first_batch + in_run / run->per_batch", "run->first_batch + in_run"),
    ("ranks.cpp", "run->first_slot + in_run % run->per_batch", "in_run % run->per_batch"),
    ("ranks.cpp", "in_run = rank - run->first_sequence;\n                if", "if"),
    ("ranks.cpp", "if (fault.is_set)", "if (false)"),
    ("ranks.cpp", "fault.size == layout.counts.tokens.size()", "fault.size == 0"),
    # Counts of pairs.
    ("counts.cpp", "limits.validate();\n    if (counts", "if (counts"),
    ("counts.cpp", "counts.tokens.size() != counts.sequences.size()", "false"),
    ("counts.cpp", "tokens < limits.special_tokens || tokens > longest", "tokens > longest"),
    ("counts.cpp", " || tokens > longest", ""),
    ("counts.cpp", "tokens != limits.round_up(tokens)", "false"),
    ("counts.cpp", "sequences < 1", "sequences < 0"),
    ("counts.cpp", "counts.tokens.back() != tokens", "true"),
    ("counts.cpp", "std::ranges::sort(sorted, std::greater{});\n    counts", "counts"),
    (
        "counts.cpp",
        "counts.validate();\n    return counts;\n}\n\nTokenCounts add",
        "return counts;\n}\n\nTokenCounts add",
    ),
    # Ties.
    ("ids.cpp", "std::ranges::min(prefixes)", "prefixes.front()"),
    ("ids.cpp", "std::max(point, largest_point(text))", "largest_point(text)"),
    ("ids.cpp", "^ (std::uint64_t{1} << 63)", ""),
    ("ids.cpp", "key <<= bits_ * (points_ - rest.size());", ""),
    ("ids.cpp", "key << count_bits | count", "key << count_bits"),
    ("ids.cpp", "from += points_;", ""),
    ("ids.cpp", "rest_a.size() < rest_b.size()", "rest_a.size() > rest_b.size()"),
    ("ids.cpp", "a.row < b.row", "a.row > b.row"),
    # Placement in open batches.
    ("placement.cpp", "number < 0 || ", ""),
    ("placement.cpp", "number > limit", "number >= limit"),
    ("placement.cpp", "|| exceeds(batch.sequences, max_sequences)", ""),
    ("placement.cpp", "exceeds(size, budget)", "false"),
    ("placement.cpp", "largest_[node] < size", "largest_[node] <= size"),
    ("placement.cpp", "is_full ? Rooms::none", "is_full ? 0"),
    ("placement.cpp", "++batches[batch].sequences;", ""),
    ("placement.cpp", "batches[batch].tokens += size;", ""),
    ("placement.cpp", "limits.validate();", ""),
    # Pricing.
    ("pricing.cpp", "if (most < counts.sequences[size])", "if (most <= counts.sequences[size])"),
    ("pricing.cpp", "std::min(2 * taken, most)", "std::min(3 * taken, most)"),
    ("pricing.cpp", "{sequences, fit, limits.max_sequences_per_batch}", "{sequences}"),
    ("pricing.cpp", "num_free + std::min(most", "std::min(most"),
    ("pricing.cpp", "largest_batch <= max_sequences ? 0", "largest_batch <= max_sequences + 1 ? 0"),
    ("pricing.cpp", "last_row_ > 0 && row >= rows; --row", "last_row_ > 0 && row > rows; --row"),
    ("pricing.cpp", "improve_row(before_.data(), 0)", "improve_row(best_.data(), 0)"),
    ("pricing.cpp", "best_.back() >= max_exact", "best_.back() > max_exact"),
    ("pricing.cpp", "if (duals[size] <= 0", "if (duals[size] < -9"),
    ("pricing.cpp", " || most == 0", ""),
    ("pricing.cpp", "std::fill_n(best_.begin(), width_, 0.0);", ""),
    ("pricing.cpp", "step > 1 ? table : base", "table"),
    ("pricing.cpp", "table.best_value() > before", "true"),
    # Patterns with reservation, and joint sizes.
    ("reservation.cpp", "smallest.tokens(slots - 1), size", "smallest.tokens(slots), size"),
    ("reservation.cpp", "(free - reserved) / tokens", "free / tokens"),
    ("reservation.cpp", "number = middle;", "number = limit;"),
    ("reservation.cpp", "places -= number;", ""),
    ("reservation.cpp", "slots -= number;", ""),
    ("reservation.cpp", "smaller_[size] = size + 1;", ""),
    ("reservation.cpp", "larger_[size + 1] = size;", ""),
    ("reservation.cpp", "std::min(places, mean)", "mean"),
    ("reservation.cpp", "counts.tokens[last - 1] / unit", "counts.tokens[first] / unit"),
    ("reservation.cpp", "reserved -= smallest[i].num_tokens();", ""),
    ("reservation.cpp", "size >= least_size && size", "size"),
]


def build() -> bool:
    """Whether the copy compiles."""
    command = ["cmake", "--build", str(COPY / "build"), "--target"]
    command += [program for program, *_ in COMMANDS]
    return subprocess.run(command, capture_output=True).returncode == 0


def is_killed() -> bool:
    """Whether a test fails, or does not end."""
    for program, *arguments in COMMANDS:
        command = [str(COPY / "build" / program), *arguments]
        try:
            # A mutation may ask for memory without end.
            result = subprocess.run(
                ["prlimit", f"--as={4 << 30}", *command], capture_output=True, timeout=60
            )
        except subprocess.TimeoutExpired:
            return True
        if result.returncode != 0:
            return True
    return False


def misplaced(mutations: list[tuple[str, str, str]]) -> list[str]:
    """Return a message for each text that does not occur exactly once in its file."""
    messages = []
    for name, old, _ in mutations:
        found = (ROOT / "cpp" / "packing" / name).read_text().count(old)
        if found != 1:
            messages.append(f"{name}: {found} occurrences, not 1, of {old!r}")
    return messages


def main() -> int:
    """Plant the mutations and return the exit status."""
    words = [word for word in sys.argv[1:] if word != "--check"]
    word = words[0] if words else ""
    chosen = [mutation for mutation in MUTATIONS if any(word in part for part in mutation)]
    if not chosen:
        raise SystemExit(f"no mutation has the word {word!r}")
    if messages := misplaced(chosen):
        raise SystemExit("\n".join(messages))
    if "--check" in sys.argv:
        return 0
    shutil.rmtree(COPY, ignore_errors=True)
    for folder in ("cpp", "benchmarks"):
        shutil.copytree(ROOT / folder, COPY / folder)
    shutil.copy(ROOT / "CMakeLists.txt", COPY)
    flags = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-O0"]
    configure = ["cmake", "-S", str(COPY), "-B", str(COPY / "build"), *flags]
    subprocess.run(configure, check=True, capture_output=True)
    if not build() or is_killed():
        raise SystemExit("the kernel fails its tests as it is")
    survivors = 0
    for name, old, new in chosen:
        path = COPY / "cpp" / "packing" / name
        text = path.read_text()
        path.write_text(text.replace(old, new))
        if not build():
            raise SystemExit(f"{name} does not compile with: {new}")
        verdict = "killed" if is_killed() else "SURVIVED"
        survivors += verdict == "SURVIVED"
        print(f"{verdict:8} {name}: {old!r} -> {new!r}", flush=True)
        path.write_text(text)
    killed = len(chosen) - survivors
    print(f"{killed} of {len(chosen)} killed")
    return 0 if killed >= 0.9 * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
