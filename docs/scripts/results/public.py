"""Tables of the public ONNX files that `bench` was tried on."""

from __future__ import annotations

from collections import Counter

from docs.scripts.markdown import table
from docs.scripts.results.files import read, size

OUTCOMES = ("measured", "refused", "failed")
ANSWERS = ("answered", "refused", "failed")
ASKED = {"photo": "one photo", "digits": "`--data digits`"}


def counts() -> str:
    """How many files of each source were measured, refused, or failed."""
    rows = read("public_onnx")["rows"]
    found = Counter((row["source"], row["outcome"]) for row in rows)
    sources = dict.fromkeys(row["source"] for row in rows)
    lines = [(source, *(str(found[source, kind]) for kind in OUTCOMES)) for source in sources]
    total = Counter(row["outcome"] for row in rows)
    lines.append((f"all {len(rows)}", *(str(total[kind]) for kind in OUTCOMES)))
    return table(["source", *OUTCOMES], lines)


def predictions() -> str:
    """How many files `predict` answered with, refused, or failed on."""
    rows = [row["predict"] for row in read("public_onnx")["rows"]]
    found = Counter((asked, row[asked]["outcome"]) for row in rows for asked in ASKED)
    lines = [
        (words, *(str(found[asked, kind]) for kind in ANSWERS)) for asked, words in ASKED.items()
    ]
    return table(["asked about", *ANSWERS], lines)


def files() -> str:
    """Each file, with its latency on one thread or the reason why it is refused."""
    lines = [
        (
            row["source"],
            f"`{row['name']}`",
            size(row["bytes"]),
            row["outcome"],
            _said(row),
        )
        for row in read("public_onnx")["rows"]
    ]
    return table(["source", "file", "size", "", "p50, or the reason"], lines)


def _said(row: dict[str, object]) -> str:
    asked = f" with `--shape {row['shape']}`" if row["shape"] else ""
    if row["outcome"] == "measured":
        return f"{row['p50_ms']:.3g} ms{asked}"
    return f"{row['reason']}{asked}".replace("|", "\\|")
