"""The documents match the code: their links, paths and names exist; generated parts are up
to date.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import SERVICES
from tallystick_server.app.wiring import implementation_of
from tests.support.platform import ROOT

_RUNBOOKS = ROOT / "docs" / "operations" / "alerts"
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_SOURCE_FILE = re.compile(r"[\w./-]+\.(py|pyi|proto|md|ini|tsv)")
_PLACEHOLDER = re.compile(r"[<>{}*…]|\bNAME\b")
_INVARIANTS = re.compile(r"((?:[A-Z]\d+)(?:(?:, | and )[A-Z]\d+)*)[^:.]{0,20}: ")


@cache
def repository_files() -> frozenset[str]:
    """The paths of all files and folders of the repository."""
    paths = set()
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            name for name in subfolders if name == ".ci" or not name.startswith((".", "__"))
        ]
        relative = Path(folder).relative_to(ROOT)
        paths |= {(relative / name).as_posix() for name in (*subfolders, *files)}
    return frozenset(paths)


@cache
def names_of_tests() -> frozenset[str]:
    """The names of all test functions."""
    texts = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(name for text in texts for name in re.findall(r"def (test_\w+)", text))


def pages() -> list[Path]:
    """The Markdown files of the repository."""
    found = [ROOT / name for name in sorted(repository_files()) if name.endswith(".md")]
    assert found
    return found


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub generates for the headings of a page."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = sum(1 for anchor in anchors if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor))
        anchors.add(f"{slug}-{number}" if slug in anchors else slug)
    return anchors | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def broken_links(page: Path) -> Iterator[str]:
    text = _CODE.sub("", _FENCE.sub("", page.read_text()))
    for inline, reference in _LINK.findall(text):
        link = inline or reference
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: the link {link} leads to no file"
        elif anchor and target.suffix == ".md" and anchor not in anchors_of(target.read_text()):
            yield f"{page.relative_to(ROOT)}: the link {link} leads to no heading"


def missing_paths(page: Path) -> Iterator[str]:
    text = page.read_text()
    spans = _CODE.findall(_FENCE.sub("", text))
    words = [word for span in spans for word in span.split()]
    words += re.findall(r"(?:^|\s)(scripts/[\w-]+)", "\n".join(_fenced(text)))
    for word in dict.fromkeys(words):
        path, _, function = word.rstrip("/,;").partition("::")
        if looks_like_path(path) and not is_in_repository(path):
            yield f"{page.relative_to(ROOT)}: there is no {path}"
        name = (function or path).partition("[")[0]
        if re.fullmatch(r"test_\w+", name) and name not in names_of_tests():
            yield f"{page.relative_to(ROOT)}: there is no test {name}"


def _fenced(text: str) -> list[str]:
    return [match[0] for match in _FENCE.finditer(text)]


def looks_like_path(word: str) -> bool:
    """Whether a word begins with a top-level folder, or is the name of a source file."""
    first, _, rest = word.partition("/")
    is_top_level = bool(rest) and first in repository_files() and (ROOT / first).is_dir()
    return is_top_level or _SOURCE_FILE.fullmatch(word) is not None


def is_in_repository(word: str) -> bool:
    """Whether a path exists, from the root or a folder below; placeholders are not compared."""
    match = _PLACEHOLDER.search(word)
    path = word[: match.start()].rpartition("/")[0] if match else word.removeprefix("./")
    suffix = f"/{path}"
    return not path or any(f"/{name}".endswith(suffix) for name in repository_files())


def alert_kinds() -> set[str]:
    """Every alert kind that a service raises."""
    settings = Settings().replace(payment__review_timeout=1.0)
    implementations = [implementation_of(spec) for spec in SERVICES]
    return {
        query.kind
        for implementation in implementations
        if implementation.alert_queries is not None
        for query in implementation.alert_queries(settings)
    }


def invariants_of_tests() -> dict[str, str]:
    """The invariant codes that test docstrings begin with, and a file that uses each."""
    codes: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            match = _INVARIANTS.match(ast.get_docstring(node) or "")
            if match is not None:
                codes |= dict.fromkeys(re.findall(r"[A-Z]\d+", match[1]), path.name)
    return codes


def test_links_have_targets() -> None:
    """Every relative link of a page points to a file, and its anchor to a heading of that file."""
    problems = [problem for page in pages() for problem in broken_links(page)]
    assert not problems, "\n".join(problems)


def test_paths_and_tests_in_pages_exist() -> None:
    """Every repository path and every test function that a page names in backticks exists."""
    problems = [problem for page in pages() for problem in missing_paths(page)]
    assert not problems, "\n".join(problems)


def test_generated_blocks_are_fresh() -> None:
    """State diagrams, error reasons, settings and policies in the documents equal those of the
    code.
    """
    command = [sys.executable, "scripts/generate_docs.py", "--check"]
    completed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert completed.returncode == 0, f"run scripts/generate-docs:\n{completed.stderr}"


def test_each_alert_kind_has_a_runbook() -> None:
    """Each alert kind has a runbook page and a row in the index; no page is obsolete. The symptoms
    that Prometheus finds share a page.
    """
    expected = {kind.lower().replace("_", "-") for kind in alert_kinds()}
    assert {path.stem for path in _RUNBOOKS.glob("*.md")} - {"README", "symptoms"} == expected
    index = (_RUNBOOKS / "README.md").read_text()
    assert [kind for kind in sorted(alert_kinds()) if f"| [{kind}](" not in index] == []


def test_invariants_of_tests_are_defined() -> None:
    """Every invariant code that a test's docstring begins with is defined in the reference."""
    reference = (ROOT / "docs" / "reference" / "invariants.md").read_text()
    codes = invariants_of_tests()
    assert len(codes) > 10
    assert {
        code: file for code, file in codes.items() if not re.search(rf"\b{code}\b", reference)
    } == {}


def test_long_files_have_a_reason() -> None:
    """The page of long files lists exactly the Python files above 400 lines."""
    page = (ROOT / "docs" / "architecture" / "long-files.md").read_text()
    names = [name for name in repository_files() if name.endswith(".py") and "_pb2" not in name]
    long_files = {name for name in names if len((ROOT / name).read_text().splitlines()) > 400}
    assert set(re.findall(r"`([\w/]+\.py)`", page)) == long_files


def test_no_merge_is_half_done() -> None:
    """No file of the repository contains the marks of a merge conflict."""
    marks = re.compile(r"^(<{7}|>{7})( |$)", re.MULTILINE)
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    texts = {name: (ROOT / name).read_bytes().decode(errors="replace") for name in tracked if name}
    assert texts
    assert [name for name, content in texts.items() if marks.search(content)] == []
