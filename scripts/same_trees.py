"""scripts/same-trees BASE: shows that the work tree differs from a commit only in names, places,
layout and prose.

Compares the syntax trees of all Python files without identifiers, words and SQL comments in
strings, docstrings, imports and the order of top-level statements. Where the trees agree, it also
checks that no function merges two names that were different before. Prints what differs and exits
with 1, else with 0.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_WORD = re.compile(r"[A-Za-z_]\w*(?:-\w+)*")
_SPACE = re.compile(r"\s+")
_SQL_COMMENT = re.compile(r"--[^\n]*(?=\n)")
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.ExceptHandler,
)
_GENERATED = "/v1/"


class _Eraser(ast.NodeTransformer):
    """Replaces identifiers, and the words in strings, by nothing."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for field in ("name", "id", "attr", "arg", "asname", "module", "rest"):
            if isinstance(getattr(node, field, None), str):
                setattr(node, field, "")
        for field in ("names", "kwd_attrs"):  # of global, nonlocal and class patterns
            if isinstance(node, (ast.Global, ast.Nonlocal, ast.MatchClass)) and hasattr(
                node, field
            ):
                setattr(node, field, [""] * len(getattr(node, field)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = _SPACE.sub("", _WORD.sub("", _SQL_COMMENT.sub("", node.value)))
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            node.value = _WORD.sub("", node.value.decode("latin-1"))
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                child
                for child in body
                if not _is_docstring(child) and not isinstance(child, (ast.Import, ast.ImportFrom))
            ]
            node.body = kept  # type: ignore[attr-defined]
        return super().generic_visit(node)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _statements(source: str) -> Iterator[tuple[str, ast.stmt]]:
    """The top-level statements, each with its erased form."""
    erased = ast.parse(source)
    _Eraser().visit(erased)
    real = [
        node
        for node in ast.parse(source).body
        if not _is_docstring(node) and not isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    for node, bare in zip(real, erased.body, strict=True):
        yield ast.dump(bare), node


def _merged(before: ast.AST, after: ast.AST) -> Iterator[str]:
    """The names that a function merges: two that were different before and are one now."""
    scopes: list[dict[str, str]] = [{}]

    def walk(one: ast.AST, other: ast.AST) -> Iterator[str]:
        enters = isinstance(one, _SCOPES)
        if enters:
            scopes.append({})
        old, new = (
            getattr(one, "id", None) or getattr(one, "arg", None),
            getattr(other, "id", None) or getattr(other, "arg", None),
        )
        if (
            isinstance(one, (ast.Name, ast.arg))
            and old
            and new
            and scopes[-1].setdefault(new, old) != old
        ):
            yield (
                f"{old} and {scopes[-1][new]} are both {new} in line {getattr(other, 'lineno', 0)}"
            )
        for child, twin in zip(_children(one), _children(other), strict=False):
            yield from walk(child, twin)
        if enters:
            scopes.pop()

    yield from walk(before, after)


def _children(node: ast.AST) -> list[ast.AST]:
    return [
        child
        for child in ast.iter_child_nodes(node)
        if not _is_docstring(child) and not isinstance(child, (ast.Import, ast.ImportFrom))
    ]


def _read_commit(commit: str) -> dict[str, str]:
    listed = _git("ls-tree", "-r", "--name-only", commit).split("\n")
    return {
        name: _git("show", f"{commit}:{name}")
        for name in listed
        if name.endswith(".py") and _GENERATED not in name
    }


def _read_work_tree() -> dict[str, str]:
    listed = _git("ls-files", "-co", "--exclude-standard", "*.py").split("\n")
    return {
        name: Path(name).read_text()
        for name in listed
        if name and _GENERATED not in name and Path(name).exists()
    }


def _git(*arguments: str) -> str:
    return subprocess.run(
        # git is wherever the developer has it
        ["git", *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout.rstrip("\n")


def _by_form(files: dict[str, str]) -> dict[str, list[tuple[str, ast.stmt]]]:
    found: dict[str, list[tuple[str, ast.stmt]]] = defaultdict(list)
    for name, source in files.items():
        for form, node in _statements(source):
            found[form].append((name, node))
    return found


def main(base: str) -> int:
    before, after = _by_form(_read_commit(base)), _by_form(_read_work_tree())
    problems = 0
    for form in sorted(before.keys() | after.keys()):
        old, new = before.get(form, []), after.get(form, [])
        if len(old) != len(new):
            problems += abs(len(old) - len(new))
            for sign, places in (("-", old), ("+", new)):
                for name, node in places:
                    print(f"{sign} {name}:{node.lineno} {ast.unparse(node).splitlines()[0][:100]}")
        elif len(old) == 1:
            for merged in _merged(old[0][1], new[0][1]):
                problems += 1
                print(f"! {new[0][0]}:{new[0][1].lineno} {merged}")
    total = sum(len(places) for places in after.values())
    print(f"{total} top-level statements, {problems} differ from {base}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
