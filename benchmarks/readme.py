"""The tables of README.md and docs/results, written from results/: `python -m benchmarks.readme`.

A table stands between `<!-- NAME -->` and `<!-- end -->`; a test checks that file and table agree.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.lib.method_tables import (
    against_l0,
    at_a_latency,
    claim_size,
    claim_to_l0,
    claim_wer,
    methods,
)
from benchmarks.lib.speed_tables import (
    idle_latencies,
    large_audio,
    latency_target,
    long_audio,
    masked_overhead,
    orchestration,
    published_name,
    quantisation,
    realised_speed,
    roofline,
    scaling,
    step_memory,
    training_speed,
    transducer_loss,
    waits,
)
from benchmarks.lib.table_cells import Row, percent, removed, wer_of, with_interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    ROOT / "docs" / "large_models.md",
    ROOT / "docs" / "concepts" / "pruning-without-training.md",
    ROOT / "docs" / "concepts" / "decoders.md",
    ROOT / "docs" / "guides" / "prune-a-parakeet.md",
)
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    for page in PAGES:
        page.write_text(rendered(page.read_text()))


def rendered(text: str) -> str:
    """The text with every table made anew."""
    return PLACE.sub(lambda place: f"{place[1]}{table(place[2])}\n{place[3]}", text)


def table(name: str) -> str:
    file, columns = TABLES[name]
    if not (RESULTS / f"{file}.json").exists():
        return ""  # it was not measured yet
    rows = columns(json.loads((RESULTS / f"{file}.json").read_text())["rows"])
    head = list(rows[0])
    rules = ["---:" if has_numbers(row[name] for row in rows) else "---" for name in head]
    lines = [head, rules, *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{origin(file)}"


def has_numbers(cells: Iterable[str]) -> bool:
    """Whether all cells of a column begin with a number, or are empty: it stands at the right."""
    return all(re.match(r"[-+]?\d|$", cell) for cell in cells)


def origin(file: str) -> str:
    """When and on which machine a result was measured, as one line."""
    provenance = json.loads((RESULTS / f"{file}.json").read_text())["provenance"]
    torch = provenance["versions"]["torch"]
    return f"*Measured {provenance['date']} on {provenance['machine']}, PyTorch {torch}.*"


def front(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "model": row["name"],
            "method": row["method"],
            "parameters": f"{row['params'] / 1e6:.3f} M",
            "removed": f"{percent(row['params_sparsity'])} of parameters,"
            f" {percent(row['flops_sparsity'])} of FLOPs",
            "WER % on dev (95 %)": with_interval(row, "wer"),
            "on test": with_interval(row, "test_wer"),
        }
        for row in rows
    ]


def family(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "size": row["name"],
            "WER % of the family's (95 %)": wer_of(row),
            "of the separate trial's": with_interval(row, "separate_wer"),
            "difference": with_interval(row, "to_separate", sign="+"),
            "steps": f"{row['steps']:.0f}, {row['separate_steps']:.0f}",
            "seconds": f"{row['seconds']:.0f}, {row['separate_seconds']:.0f}",
        }
        for row in rows
    ]


def adapting(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "model": row["name"],
            "parameters": f"{row['params'] / 1e6:.3f} M",
            "WER % on old words (95 %)": with_interval(row, "old_wer"),
            "on new words": with_interval(row, "new_wer"),
        }
        for row in rows
    ]


def early_stopping(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "rule": row["name"],
            **what_stays(row),
            "trials finished": f"{row['finished']:.0f}",
            "ours over it at equal steps": f"{row['ours_at_equal_steps']:.3f}",
        }
        for row in rows
    ]


def depth(rows: Sequence[Row]) -> list[dict[str, str]]:
    """WER in % at each depth."""
    return [
        {"teacher, order": row["name"]}
        | {key: f"{value:.1f}" for key, value in row.items() if key != "name"}
        for row in rows
    ]


def unlabelled(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What the training data was, and what that did to the error at half the FLOPs."""
    return [
        {
            "trained on": row["name"],
            "FLOPs": removed(row["flops_removed"]),
            "WER % (95 %)": wer_of(row),
            "to transcripts": with_interval(row, "to_transcripts", sign="+"),
            "seeds": str(row["seeds"]),
        }
        for row in rows
    ]


def half_the_size(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What is gone of each resource, and what that did to the error."""
    compared = {"to_teacher": "to the teacher", "to_dense": "to dense, tuned as long"}
    return [
        {
            "model": row["name"],
            "parameters": removed(row["params_removed"]),
            "FLOPs": removed(row["flops_removed"]),
            "CPU time": removed(row["time_removed"]),
            "WER % (95 %)": wer_of(row),
            **{
                said: with_interval(row, key, sign="+")
                for key, said in compared.items()
                if key in row
            },
            "seeds": str(row["seeds"]),
        }
        for row in rows
    ]


def what_stays(row: Row) -> dict[str, str]:
    """Of a sweep that was not stopped."""
    return {
        "steps": percent(row["steps_ratio"]),
        "hypervolume": f"{row['hypervolume_ratio']:.3f}",
        "of models up to 10 % WER": f"{row['of_good_models']:.3f}",
    }


def live_stopping(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "sweep": row["name"],
            **what_stays(row),
            "trials finished": f"{row['finished']}",
            "stopped": f"{row['stopped']}",
        }
        for row in rows
    ]


def sampling(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "sampler": f"`{row['name']}`",
            "trials, median": f"{row['median']:g}",
            "middle half": f"{row['quarter']:g} to {row['three quarters']:g}",
            "most": f"{row['most']}",
        }
        for row in rows
    ]


def kills(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Faults by kind, in the order in which they are counted."""
    heads = ("kills", "sweeps", "lost", "duplicated", "left_running", "unordered", "different")
    return [
        {"killed": row["name"]} | {key.replace("_", " "): str(row[key]) for key in (*heads, "late")}
        for row in rows
    ]


def sherpa(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "graph": row["name"],
            "texts as `transcribe`": f"{row['equal']} of {row['utterances']}",
            "WER %, alone": f"{100 * row['wer_alone']:.2f}",
            "in batches": f"{100 * row['wer_together']:.2f}",
            "of `transcribe`": f"{100 * row['wer_transcribe']:.2f}",
        }
        for row in rows
    ]


def imported(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "trial": row["name"],
            "parameters": f"{row['params'] / 1e6:.3f} M",
            "FLOPs": removed(row["flops_removed"]),
            "WER % on dev": f"{100 * row['wer']:.2f}",
            "graph's gap": f"{row['gap']:.1e}",
        }
        for row in rows
    ]


def imported_in_sherpa(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Of three points of the front, hearing what NeMo computes, and what sherpa-onnx does."""
    return [
        {
            "trial": row["name"],
            "features": features,
            "texts as `transcribe`": f"{row[f'{kind}equal']} of {row[f'{kind}utterances']}",
            "WER % of `transcribe`": f"{100 * row[f'{kind}wer_transcribe']:.2f}",
            "in sherpa-onnx": f"{100 * row[f'{kind}wer_sherpa']:.2f}",
            "int8 adds": f"{100 * row[f'{kind}wer_added_int8']:+.2f}",
        }
        for row in rows
        if "equal" in row
        for features, kind in (("NeMo's", ""), ("`--for-sherpa`", "for_sherpa_"))
    ]


def large_models(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What each command took; the small shape is there for tests alone."""
    return [
        {
            "model": published_name(row["shape"]),
            "command": COMMANDS.get(row["name"], f"`export --to {row['name']}`"),
            "seconds": f"{row['seconds']:.0f}",
            "peak memory": f"{row['peak_gb']:.1f} GB",
            "of the weights": f"{row['weights']:.1f}",
            "written": f"{row['written_gb']:.1f} GB" if row["written_gb"] else "",
        }
        for row in rows
        if row["shape"] != "small" and row["name"] != "source"
    ]


def transducers(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How many texts and times of exports are those of the same search in torch."""
    return [
        {
            "transducer": row["name"],
            "in": f"{row['runtime']} {row['version']}",
            "tokens a frame": str(row["most_symbols"]),
            "utterances": str(row["utterances"]),
            "equal texts": str(row["equal"]),
            "equal times": str(row["equal_times"]),
            "as `transcribe`": str(row["as_transcribe"]),
        }
        for row in rows
    ]


COMMANDS = {
    "import": "`import`",
    "check": "`check`",
    "prune": "`prune --remove 0.5`",
    "prune --audio": "`prune --audio`, 10 min of speech, 3 sizes",
    "bench": "`bench`",
    "transcribe": "`transcribe`, 10 s",
    "int8": "`export --to onnx --int8`",
}
"""As a user gives them."""
TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], list[dict[str, str]]]]] = {
    "front_commands": ("front_commands", front),
    "front_methods": ("front_methods", front),
    "paper_claim": ("paper_claim", claim_wer),
    "paper_claim_to_l0": ("paper_claim", claim_to_l0),
    "paper_claim_size": ("paper_claim", claim_size),
    "paper_claim_rate": ("paper_claim_rate", claim_wer),
    "masked_overhead": ("masked_overhead", masked_overhead),
    "realised_speed": ("realised_speed", realised_speed),
    "training_speed": ("training_speed", training_speed),
    "latency_target": ("latency_target", latency_target),
    "roofline": ("roofline", roofline),
    "scaling": ("scaling", scaling),
    "quantisation": ("quantisation", quantisation),
    "family": ("family", family),
    "orchestration": ("orchestration", orchestration),
    "adapting": ("adapting", adapting),
    "depth": ("depth", depth),
    "methods": ("methods", methods),
    "methods_spoken": ("methods_spoken", against_l0),
    "methods_spoken_latency": ("methods_spoken_latency", at_a_latency),
    "leaders_spoken": ("leaders_spoken", against_l0),
    "half_the_size_commands": ("half_the_size_commands", half_the_size),
    "half_the_size_spoken": ("half_the_size_spoken", half_the_size),
    "unlabelled": ("unlabelled", unlabelled),
    "early_stopping": ("early_stopping", early_stopping),
    "live_stopping": ("live_stopping", live_stopping),
    "sampling": ("sampling", sampling),
    "kills": ("kills", kills),
    "long_audio": ("long_audio", long_audio),
    "sherpa": ("sherpa", sherpa),
    "imported": ("imported", imported),
    "imported_in_sherpa": ("imported", imported_in_sherpa),
    "large_models": ("large_models", large_models),
    "large_audio": ("large_audio", large_audio),
    "large_transducers": ("large_transducers", large_models),
    "transducers": ("transducers", transducers),
    "transducer_loss": ("transducer_loss", transducer_loss),
    "waits": ("waits", waits),
    "waits_before": ("waits_before", waits),
    "step_memory": ("step_memory", step_memory),
    "idle_latencies": ("idle_latencies", idle_latencies),
    "untuned_demo": ("untuned_demo", claim_wer),
    "untuned_commands": ("untuned_commands", claim_wer),
    "tuned_demo": ("tuned_demo", claim_wer),
    "tuned_commands": ("tuned_commands", claim_wer),
}
"""What stands between the marks: of which result, and how it is said."""


if __name__ == "__main__":
    main()
