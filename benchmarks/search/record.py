"""Keep the trials of a finished sweep, with their whole curves, to replay schedulers on them.

One line a trial under benchmarks/data/trials.jsonl.gz: parameters, curve, outcome.
"""

import argparse
import gzip
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lib.measurement import provenance
from benchmarks.lib.replay import FILE
from sweep.ledger.records import TrialRecord
from sweep.snapshot import load_snapshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/recorded"))
    args = parser.parse_args()
    seen = load_snapshot(args.dir)
    kept = [r for r in seen.records if r.state == "finished"]
    head = {"sweep": seen.config.toml(), "provenance": provenance()}
    lines = [head, *map(plain, kept)]
    FILE.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    FILE.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"kept {len(kept)} trials in {FILE}")


def plain(record: TrialRecord) -> dict[str, Any]:
    curve = [heard._asdict() for heard in record.curve]
    return {**asdict(record), "curve": curve, "mlflow_run_id": None}


if __name__ == "__main__":
    main()
