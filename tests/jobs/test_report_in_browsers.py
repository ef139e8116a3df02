"""The page about a plan in a browser, if there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_pages import (
    pack_table,
    report,
)

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
CLICKS = """
const [id, residues] = document.querySelectorAll("th button");
const seen = () => Array.from(document.querySelectorAll("table.sortable tbody tr"),
  (row) => row.cells[0].textContent).join(" ");
const orders = () => Array.from(document.querySelectorAll("th[aria-sort]"),
  (head) => head.textContent + " " + head.getAttribute("aria-sort")).join(" ");
const states = [orders(), seen()];
for (const button of [id, id, residues, residues]) {
  button.click();
  states.push(orders(), seen());
}
document.title = states.join("; ");
"""
# Says how wide a page is in a window of a width.
FRAME = """
<!DOCTYPE html><title></title><iframe style="width:{width}px" srcdoc="{page}"></iframe>
<script>onload = () => {{ const inside = document.querySelector("iframe").contentDocument;
  document.title = inside.documentElement.scrollWidth; }};</script>
"""


def browse(folder: Path, page: str) -> str:
    """Return a page after a browser has loaded it, without a network."""
    path = folder / "browsed.html"
    path.write_text(page, encoding="utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return result.stdout.decode()


def title_of(page: str) -> str:
    match = re.search("<title>(.*?)</title>", page)
    assert match is not None
    return match[1]


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_sorts_sequences(tmp_path: Path) -> None:
    page = report(pack_table(tmp_path, ["b", "c", "a"], [1100, 12000, 2000]))
    # The policy of the page allows its script, and no other.
    assert browse(tmp_path, page).count("<button") == 5
    changed = page.replace("</body>", f"<script>{CLICKS}</script></body>")
    assert title_of(browse(tmp_path, changed)) == "plan.parquet"
    changed = re.sub("<meta http-equiv=[^>]*>", "", changed)
    assert title_of(browse(tmp_path, changed)).split("; ") == [
        *("Lost descending", "c a b"),
        *("ID ascending", "a b c"),
        *("ID descending", "c b a"),
        *("Residues descending", "c a b"),
        *("Residues ascending", "b a c"),
    ]


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no browser")
@pytest.mark.parametrize("width", [320, 360, 768])
def test_pages_do_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    ids = ["sp|A0A024B7W1|A_VERY_LONG_NAME_" + "M" * 300, "b"]
    page = report(pack_table(tmp_path, ids, [2**40, 30]))
    frame = FRAME.format(width=width, page=html.escape(page))
    assert int(title_of(browse(tmp_path, frame))) <= width
