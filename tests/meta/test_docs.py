"""What the documentation shows works: the Python of each page runs as one script, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\s*$")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def script_of(page: str) -> str:
    """The Python blocks of a page, each on its own lines of it, so that a traceback names the line of the page."""
    lines, language = [], None
    for line in page.splitlines():
        fence = FENCE.match(line)
        if fence:
            language = None if language is not None else fence.group(1)
            lines.append("")
        else:
            lines.append(line if language == "python" else "")
    if language is not None:
        raise ValueError("a code block is never closed")
    return "\n".join(lines) + "\n"


def run_page(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "page.py").write_text(script_of(page), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "page.py"], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_python_of_a_page_runs(path, tmp_path):
    page = path.read_text(encoding="utf-8")
    if not script_of(page).strip():
        return  # a page without Python; the next test counts those that have some
    done = run_page(page, tmp_path)
    assert done.returncode == 0, f"{path.name}:\n{done.stderr}"


def test_pages_were_visited():
    assert {"metrics.md", "losses.md", "errors.md"} <= {path.name for path in PAGES}
    assert sum(bool(script_of(path.read_text(encoding="utf-8")).strip()) for path in PAGES) >= 2


def test_links_between_pages_lead_somewhere():
    pages = [*PAGES, *ROOT.glob("*.md")]
    assert len(pages) >= 4
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_the_check_of_pages_can_fail(tmp_path):
    page = "# Title\n\n```bash\nnot python\n```\n\n```python\nx = 1\n```\ntext\n```python\nassert x == 2, x\n```\n"
    done = run_page(page, tmp_path)
    assert done.returncode != 0
    assert "line 12" in done.stderr  # the line of the page
    assert run_page(page.replace("x == 2", "x == 1"), tmp_path).returncode == 0
    with pytest.raises(ValueError, match="never closed"):
        script_of("```python\nx = 1\n")
    assert LINK.findall("[a](gone.md#part) [b](https://x.org/y.md) [c](#here)") == ["gone.md"]
