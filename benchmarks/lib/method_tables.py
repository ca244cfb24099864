"""Tables of methods: each at every target, beside `l0`, and what it takes."""

from collections.abc import Callable, Sequence

from benchmarks.lib.table_cells import Row, percent, removed, wer_of, with_interval


def claim_wer(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The teacher and its further training have no target, and a column of their own."""
    unpruned = [row for row in rows if not row["target"]]
    empty = dict.fromkeys(targets(rows), "")
    return [
        *({"model": row["name"], "unpruned": wer_of(row), **empty} for row in unpruned),
        *({"model": "", "unpruned": "", **row} for row in by_target(rows, wer_of)),
    ]


def claim_to_l0(rows: Sequence[Row]) -> list[dict[str, str]]:
    others = [row for row in rows if row["name"] != "l0"]
    return by_target(others, lambda row: with_interval(row, "to_l0", sign="+"))


def claim_size(rows: Sequence[Row]) -> list[dict[str, str]]:
    return by_target(
        rows,
        lambda row: (
            f"{percent(row['params_removed'])}, {percent(row['flops_removed'])},"
            f" {row['speedup']:.2f} x"
        ),
    )


def by_target(rows: Sequence[Row], said: Callable[[Row], str]) -> list[dict[str, str]]:
    """A row a method, a column a target."""
    names = dict.fromkeys(row["name"] for row in rows if row["target"])
    cells = {(row["name"], row["target"]): said(row) for row in rows}
    return [
        {"model": name} | {target: cells.get((name, target), "") for target in targets(rows)}
        for name in names
    ]


def against_l0(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The error, and how much more of the words that is than `l0` has; best at the last first."""
    last = targets(rows)[-1]
    wers = {row["name"]: row["wer"] for row in rows if row["target"] == last}

    def said(row: Row) -> str:
        return f"{percent(row['wer'])}, {with_interval(row, 'to_l0', sign='+')}"

    return sorted(by_target(rows, said), key=lambda row: wers.get(row["model"], 1.0))


def at_a_latency(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What each model came to and its error; best first."""
    return [
        {
            "model": row["name"],
            "CPU time": removed(row["time_removed"]),
            "FLOPs": removed(row["flops_sparsity"]),
            "WER % (95 %)": wer_of(row),
            "to l0": with_interval(row, "to_l0", sign="+"),
            "seeds": str(row["seeds"]),
        }
        for row in sorted(rows, key=lambda row: row["wer"])
        if row["target"]
    ]


def targets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["target"] for row in rows if row["target"]))


SYSTEMS: dict[str, tuple[str, str]] = {
    "l0": ("Accurate and Structured Pruning, the paper", "the budget is known and WER counts most"),
    "l0 straight through": ("the same, gates rounded in the search", ""),
    "l0 annealed": ("the same, gates ever colder", ""),
    "l0 from magnitude": ("the same, started in the order of magnitudes", ""),
    "l0 from numerical": ("the same, started in the order of `numerical`", ""),
    "l0 from ld": ("the same, started in the order of `ld`", ""),
    "l0 from mope": ("the same, started in the order of `mope`", ""),
    "l0 gates faster": ("the same, gates free to go further", ""),
    "l0 longer warm-up": ("the same, its target reached later", ""),
    "l0 in three rounds": ("the same, in rounds that shut for good", ""),
    "l0 weights faster": ("the same, weights learning at a rate of 2e-3 meanwhile", ""),
    "l0 from mope, faster": ("both, from `mope` and weights at 2e-3", ""),
    "constrained": ("Controlled Sparsity", "as `l0`, with no multiplier's rate to find"),
    "acip": ("ours: ACIP without adapters", "every size is wanted from one training"),
    "family": ("ours: nested sizes trained together", "several sizes are wanted, each at its best"),
    "cpd": ("ours: reading of Comb, Prune, Distill", "there are steps to teach between cuts"),
    "numerical": ("ours: reading of Numerical Pruning", "there are seconds, and no transcripts"),
    "comp": ("ours: reading of COMP", "blocks and units shall go together"),
    "ld": ("ours: reading of LD-Pruner", "there are no transcripts"),
    "mope": ("ours: reading of MoPE-CLIP", "the error itself shall decide"),
    "obs": ("ours: OBS with sensitivity tables", "there are minutes, and no transcripts"),
    "obs measured": ("the same, tables measured", ""),
    "prunenet": ("ours: reading of PruneNet", "the training speech is gone"),
    "interctc": ("ours: Layer Pruning on Demand", "depth shall be chosen at run time"),
    "performer": ("ours: Performers in Conformers", "utterances are long"),
    "foster": ("ours: FOSTER for CTC, as tuning", "new words come later"),
    "magnitude": ("baseline: small weights go", "as a control"),
    "uniform": ("baseline: the same share everywhere", "as a control"),
    "random": ("baseline: chance", "as a control"),
    "scratch": ("baseline: the sizes, trained anew", "as a control"),
    "dense": ("nothing removed, tuned as long", "as a control"),
    "teacher": ("the model that was brought", ""),
}
"""What each method is, and when to choose it."""


def methods(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A row a method: WER at each budget, what it takes, what it is; best at the last first."""
    wanted = targets(rows)
    wers: dict[str, dict[str, str]] = {}
    for row in rows:
        wers.setdefault(row["name"], {})[row["target"]] = wer_of(row)
    lowest = {row["name"]: row["wer"] for row in rows if row["target"] == wanted[-1]}
    last = {row["name"]: row for row in rows}
    names = sorted(wers, key=lambda name: (name in lowest, lowest.get(name, 0.0)))
    return [
        {
            "method": f"`{name}`" if name != "teacher" else name,
            "WER % with nothing removed": wers[name].get("", ""),
            **{target: wers[name].get(target, "") for target in wanted},
            **taken(last[name]),
            "what it is": SYSTEMS[name][0],
            "choose it when": SYSTEMS[name][1],
        }
        for name in names
    ]


def taken(row: Row) -> dict[str, str]:
    """What a search took; the teacher had none."""
    if "search_seconds" not in row:
        return dict.fromkeys(("needs", "search", "memory"), "")
    return {
        "needs": row["needs"],
        "search": f"{row['search_seconds']:.1f} s",
        "memory": f"{row['peak_mib']:.0f} MiB",
    }
