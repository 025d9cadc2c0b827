"""Stage 0: training prompts in the four classes, from templates and from text that is at hand.

    python -m examples.train_drafts.prompts --target DIR --out DATA/prompts.json

Passages to summarise or to ask about come from the documentation that ships with Python and, with
`--passages`, from files: the target's own earlier answers, or any prose (see README). None is
shared with the demo's prompts, which is what the drafts are judged on.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics as PYTHON_TOPICS

from transformers import AutoTokenizer

from examples.train_drafts.common import chat_ids
from examples.train_drafts.features import read_answers

HERE = Path(__file__).parent
SUBJECTS = json.loads((HERE / "subjects.json").read_text())
ASK_FOR: dict[str, list[str]] = SUBJECTS["templates"]
WHOLE: dict[str, list[str]] = SUBJECTS["requests"]  # complete ones, not made from a template
MAX_PROMPT_TOKENS = 320


def reasoning(rng: random.Random) -> str:
    """A word problem with numbers, names and things drawn anew."""
    a, b, c = rng.randint(3, 60), rng.randint(2, 15), rng.randint(2, 9)
    p, q, r = rng.sample(SUBJECTS["names"], 3)
    t, u = rng.sample(SUBJECTS["things"], 2)
    numbers = {"a": a, "b": b, "c": c, "minutes": a % 50 + 10, "ab": a * b, "aplus": a + c}
    numbers |= {f"{n}{k}": v * k for n, v in (("a", a), ("b", b), ("c", c)) for k in (2, 3, 5, 10)}
    problem = rng.choice(ASK_FOR["reasoning"]).format(**numbers, p=p, q=q, r=r, t=t, u=u)
    return problem + rng.choice(ASK_FOR["reason_end"])


def documentation() -> Iterator[str]:
    """Paragraphs of 50 to 170 words from the standard library and the language reference."""
    for tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if 50 <= len(text.split()) <= 170 and ">>>" not in text:
                    yield text
    for text in PYTHON_TOPICS.values():
        for paragraph in re.split(r"\n\n+", text):
            if 50 <= len(paragraph.split()) <= 170:
                yield " ".join(paragraph.split())


def functions() -> Iterator[str]:
    """Short functions of the standard library, as source."""
    for tree in _modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and 4 <= node.end_lineno - node.lineno <= 18:
                yield ast.unparse(node)


def _modules() -> Iterator[ast.Module]:
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
    for path in sorted(root.rglob("*.py")):
        if not skip & set(path.parts):
            try:
                yield ast.parse(path.read_text(encoding="utf8"))
            except (SyntaxError, UnicodeDecodeError):
                continue


def given_passages(path: Path, tokenizer: AutoTokenizer) -> Iterator[str]:
    """Prose of 50 to 150 words: answers of the target (.jsonl, .npz) or a text, one per line."""
    for text in _texts(path, tokenizer):
        text = " ".join(text.split()[:150])
        if len(text.split()) >= 50 and not set("{}=`|_") & set(text):
            yield text[: text.rfind(".") + 1] or text


def _texts(path: Path, tokenizer: AutoTokenizer) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for seq in map(json.loads, path.read_text().splitlines()):
            answer = seq["tokens"][seq["prompt_length"] :]
            yield tokenizer.decode(answer, skip_special_tokens=True)
    elif path.suffix == ".npz":
        for given in read_answers(path, []):
            answer = given.tokens[given.prompt_length :]
            yield tokenizer.decode(answer, skip_special_tokens=True)
    else:
        yield from path.read_text().splitlines()


def build(passages: list[str], sources: list[str], count: int, rng: random.Random) -> list[dict]:
    """`count` prompts per class; `group` is the unit that keeps train and held out apart."""
    topics, tasks, questions = (SUBJECTS[n] for n in ("topics", "tasks", "questions"))
    rows = []
    for _ in range(count):
        passage, other = rng.choice(passages), rng.choice(passages)
        topic, second = rng.sample(topics, 2)
        task, source = rng.choice(tasks), rng.choice(sources)
        rows.append(
            ("summarisation", passage[:60], rng.choice(ASK_FOR["summarise"]).format(passage))
        )
        if (part := rng.random()) < 0.35:
            question = rng.choice(questions)
            rows.append(("qa", question, question))
        elif part < 0.75:
            rows.append(("qa", topic, rng.choice(ASK_FOR["ask"]).format(topic, second)))
        else:
            rows.append(("qa", other[:60], rng.choice(ASK_FOR["about_passage"]).format(other)))
        if (part := rng.random()) < 0.65:
            rows.append(("code", task, rng.choice(ASK_FOR["code"]).format(task)))
        elif part < 0.85:
            rows.append(("code", source[:60], rng.choice(ASK_FOR["read_code"]).format(source)))
        else:
            request = rng.choice(WHOLE["code"])
            rows.append(("code", request[:60], request))
        text = rng.choice(WHOLE["reasoning"]) if rng.random() < 0.15 else reasoning(rng)
        rows.append(("reasoning", re.sub(r"\d+", "#", text)[:60], text))
    unique = {text: (kind, group) for kind, group, text in rows}
    return [{"kind": k, "group": g, "text": t} for t, (k, g) in unique.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passages", type=Path, nargs="+", default=[], help="see given_passages")
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--held-out", type=float, default=0.04, help="share of the groups")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    docs = sorted(set(documentation()))
    own = [text for path in args.passages for text in given_passages(path, tokenizer)]
    passages = [*own, *rng.sample(docs, min(len(docs), max(200, len(own) // 4)))]
    rows = build(passages, sorted(set(functions())), args.per_class, rng)
    rows = [r for r in rows if len(chat_ids(tokenizer, r["text"])) <= MAX_PROMPT_TOKENS]
    groups = sorted({r["group"] for r in rows})
    held = set(rng.sample(groups, round(args.held_out * len(groups))))
    for row in rows:
        row["held_out"] = row["group"] in held
    rng.shuffle(rows)
    args.out.write_text(json.dumps(rows, indent=1))
    held_out = sum(r["held_out"] for r in rows)
    print(f"{len(rows)} prompts, {held_out} held out, given passages {len(own)}")


if __name__ == "__main__":
    main()
