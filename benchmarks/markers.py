"""Puts measured tables into the docs, between two comments, so that a script can repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def put_between(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces what stands between `<!-- name: begin -->` and `<!-- name: end -->` in a file.

    Raises:
        SystemExit: the file has no such markers.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path} has no markers {begin} … {end}; put them where the table is to stand.")
    before, after = text.split(begin, 1)[0], text.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")
