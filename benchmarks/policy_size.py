"""How large the default policy is: lines, classes and numbers of everything in ``policy/`` that it
imports.

    python benchmarks/policy_size.py

A table first; the last line is the same figures as one JSON object. ``code``: lines that are
neither blank, comment nor docstring. ``constants``: module-level names that are bound to numbers.
``literals``: numbers in the code other than 0, 1 and 2, those of the constants included.
"""

from __future__ import annotations

import ast
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "sglang_speckv.policy"
ROOT = Path(__file__).parents[1]
DEFAULT = "throughput"
TRIVIAL = (0, 1, 2)


def modules(name: str = DEFAULT) -> list[str]:
    """``name`` and what it imports from ``policy/``, however far away."""
    found, waiting = [], [name]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.append(module)
            waiting += _imported(ast.parse(_path(module).read_text()))
    return sorted(found)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            yield str(node.module).removeprefix(f"{PACKAGE}.")


def _path(module: str) -> Path:
    return ROOT / PACKAGE.replace(".", "/") / f"{module}.py"


def size(module: str) -> dict[str, object]:
    text = _path(module).read_text()
    tree = ast.parse(text)
    return {
        "module": module,
        "lines": len(text.splitlines()),
        "code": len(_code_lines(module, tree)),
        "classes": sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        "constants": sum(_numbers_bound(node) for node in tree.body),
        "literals": sum(_is_number(node) for node in ast.walk(tree)),
    }


def _code_lines(module: str, tree: ast.Module) -> set[int]:
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    told = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    with _path(module).open("rb") as source:
        tokens = [
            token for token in tokenize.tokenize(source.readline) if token.type not in skipped
        ]
    lines = {n for token in tokens for n in range(token.start[0], token.end[0] + 1)}
    return lines - told - {0, tokens[-1].start[0]}


def _numbers_bound(node: ast.stmt) -> int:
    """How many names a statement of a module binds to numbers."""
    if not isinstance(node, ast.Assign) or not any(_is_number(n, ()) for n in ast.walk(node.value)):
        return 0
    return sum(len(t.elts) if isinstance(t, ast.Tuple) else 1 for t in node.targets)


def _is_number(node: ast.AST, trivial: tuple[int, ...] = TRIVIAL) -> bool:
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool):
        return False
    return isinstance(node.value, int | float) and node.value not in trivial


def main() -> None:
    rows = [size(module) for module in modules()]
    keys = [key for key in rows[0] if key != "module"]
    total = {"module": "all", **{key: sum(int(str(row[key])) for row in rows) for key in keys}}
    print(f"{'module':<12}" + "".join(f"{key:>11}" for key in keys))
    for row in [*rows, total]:
        print(f"{row['module']:<12}" + "".join(f"{row[key]:>11}" for key in keys))
    print(json.dumps({"benchmark": "policy_size", "rows": rows, "total": total}))


if __name__ == "__main__":
    main()
