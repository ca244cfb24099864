"""The README's tables, written from the files under results/: `python benchmarks/readme.py`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; a test checks that file and table agree.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text()))


def rendered(text: str) -> str:
    """The text with every table made anew."""
    return PLACE.sub(lambda place: f"{place[1]}{table(place[2])}\n{place[3]}", text)


def table(name: str) -> str:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    rows = COLUMNS[name](result["rows"])
    head = list(rows[0])
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paper_claim(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "model": row["name"],
            "asked to remove": row["target"] or "-",
            "parameters": f"{row['params'] / 1e6:.2f} M",
            "FLOPs": f"-{percent(row['flops_removed'])}",
            "WER % (95 %)": with_interval(row, "wer"),
            "against dense": with_interval(row, "to_dense", sign="+"),
            "seeds": str(row["seeds"]),
        }
        for row in rows
    ]


def masked_overhead(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "size": row["name"],
            "dense step": f"{row['dense_ms']:.0f} ms",
            "masked step": f"{row['masked_ms']:.0f} ms",
            "ratio": f"{row['ratio']:.2f}",
        }
        for row in rows
    ]


def realised_speed(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "size": row["name"],
            "FLOPs": f"-{percent(row['sparsity'])}",
            "promised": f"{row['promised']:.2f} x",
            "measured": f"{row['realised']:.2f} x",
            "share": f"{row['share']:.2f}",
        }
        for row in rows
    ]


def orchestration(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "sweep": row["name"],
            "plain loop": f"{row['loop_seconds']:.0f} s",
            "sweep took": f"{row['sweep_seconds']:.0f} s",
            "ratio": f"{row['ratio']:.3f}",
            "Ray's start, not counted": f"{row['start_seconds']:.0f} s",
        }
        for row in rows
    ]


COLUMNS = {
    "paper_claim": paper_claim,
    "masked_overhead": masked_overhead,
    "realised_speed": realised_speed,
    "orchestration": orchestration,
}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(row: Row, key: str, *, sign: str = "") -> str:
    middle, low, high = (100 * row[k] for k in (key, f"{key}_low", f"{key}_high"))
    return f"{middle:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


if __name__ == "__main__":
    main()
