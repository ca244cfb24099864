"""The columns of the README's tables about time and memory."""

from collections.abc import Sequence

from benchmarks.lib.table_cells import Row, percent


def training_speed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A step's time, and how many times ours it is."""
    return [
        {
            "encoder": row["name"],
            "parameters": f"{row['params'] / 1e6:.2f} M",
            **{
                precision: f"{row[f'{precision}_ms']:.0f} ms, {row[f'{precision}_of_ours']:.2f} x"
                for precision in ("fp32", "bf16")
            },
        }
        for row in rows
    ]


def roofline(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "what": row["name"],
            "precision": row["precision"],
            "GFLOP a second": f"{row['gflops_a_second']:.0f}",
            "of the best product": percent(row["share"]),
        }
        for row in rows
    ]


def scaling(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "along": row["name"],
            "at": str(row["value"]),
            "step": f"{row['step_seconds']:.2f} s",
            "kept for backward": f"{row['kept_bytes'] / 2**20:.0f} MiB"
            if row["kept_bytes"]
            else "",
        }
        for row in rows
    ]


def masked_overhead(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A result from before there were taught steps has none."""
    return [
        {
            "size": row["name"],
            "dense step": f"{row['dense_ms']:.0f} ms",
            **{
                heading: f"{row[f'{key}_ms']:.0f} ms, {row[ratio]:.2f} x"
                for heading, key, ratio in (
                    ("masked step", "masked", "ratio"),
                    ("taught step", "taught", "ratio_taught"),
                )
                if ratio in row
            },
        }
        for row in rows
    ]


def realised_speed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """A result from before there were runtimes is of eager torch at 10 s."""
    return [
        {
            "size": row["name"],
            "runtime": row.get("runtime", "torch"),
            "audio": f"{row.get('seconds', 10):.0f} s",
            "cut by": row.get("choice", "flops"),
            "FLOPs": f"-{percent(row['sparsity'])}",
            "promised": f"{row['promised']:.2f} x",
            "measured": f"{row['realised']:.2f} x",
            "share": f"{row['share']:.2f}",
        }
        for row in rows
    ]


def latency_target(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How far what was measured lies from what was asked for, over orders and seeds."""
    groups: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        size, *_, multiples = row["name"].split(", ")
        groups.setdefault((size, multiples, row["asked"]), []).append(row["measured"])
    return [
        {
            "size": size,
            "sizes kept": multiples,
            "latency asked for": percent(asked),
            "measured, least to most": f"{percent(min(found))} to {percent(max(found))}",
            "furthest off": f"{100 * max((m / asked - 1 for m in found), key=abs):+.1f} %",
        }
        for (size, multiples, asked), found in groups.items()
    ]


def quantisation(rows: Sequence[Row]) -> list[dict[str, str]]:
    return [
        {
            "runs in": row["name"],
            "size": f"{row['megabytes']:.1f} MB",
            "speech": f"{row['seconds']:g} s",
            "takes": f"{row['ms']:.1f} ms",
            "over torch": f"{row['over_torch']:.2f} x",
            "over ONNX Runtime": f"{row['over_onnxruntime']:.2f} x",
            "WER % on dev": f"{100 * row['wer']:.2f}",
            "on test": f"{100 * row['test_wer']:.2f}",
        }
        for row in rows
    ]


def long_audio(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Memory is what the peak was higher than that of hearing a minute."""
    return [
        {
            "speech": row["name"],
            "windows up to": f"{row['window']:g} s",
            "real-time factor": f"{row['real_time_factor']:.4f}",
            "more memory than for a minute": f"{row['peak_growth_mb']:.0f} MB",
            "words": str(row["words"]),
            "the same with windows elsewhere": f"{100 * row['agree_shifted']:.2f} %",
            "in a file that begins later": f"{100 * row['agree_late']:.2f} %",
            "WER %": f"{100 * row['wer']:.2f}",
            "of the utterances alone": f"{100 * row['wer_alone']:.2f}",
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


def large_audio(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What `prune --audio` took for a large model, stage by stage."""
    return [
        {
            "model": published_name(row["shape"]),
            "tables": minutes(row["stages"]["measuring"]),
            **{
                f"{title.split()[1]} % removed": minutes(seconds)
                for title, seconds in row["stages"].items()
                if title.startswith("removing")
            },
            "all": minutes(row["seconds"]),
            "peak memory": f"{row['peak_gb']:.1f} GB",
            "of the weights": f"{row['weights']:.1f}",
        }
        for row in rows
        if row["name"] == "prune --audio"
    ]


def transducer_loss(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How much faster losses and their gradients are than other programs'."""
    return [
        {
            "size": row["name"],
            "from": row["from"],
            "RNN-T": f"{row['rnnt_ms']:.0f} ms",
            "faster than torchaudio": f"{row['rnnt_faster']:.2f} times",
            "TDT": f"{row['tdt_ms']:.0f} ms",
            "faster than transformers": f"{row['tdt_faster']:.2f} times",
        }
        for row in rows
    ]


def waits(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Where steps wait for a device, and how often."""
    return [
        {"step": row["step"], "waits": str(row["waits"]), "where": row["where"]}
        for row in rows
        if row["where"] == "all of them" or row["step"] == "taught"
    ]


def idle_latencies(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How far latencies of sweeps are from those of the idle machine afterwards."""
    return [
        {
            "sweep": row["sweep"],
            "models": str(row["models"]),
            "latencies": f"{row['lowest_ms']:.0f} to {row['highest_ms']:.0f} ms",
            "largest difference": f"{100 * row['worst']:.0f} %",
            "in the order of FLOPs": "yes" if row["in_order"] else "no",
            "beside trials": f"{100 * row['worst_beside']:.0f} %",
            "in order beside trials": "yes" if row["in_order_beside"] else "no",
        }
        for row in rows
    ]


STEP_PARTS = ("weights", "optimizer", "activations", "foretold", "measured")
"""Columns of the memory of a step, in bytes."""


def step_memory(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Memory of a step foretold and measured, in megabytes."""
    return [
        {
            "model": row["size"],
            "batch": f"{row['batch_seconds']:.0f} s",
            "checkpointing": "yes" if row["checkpointing"] else "no",
            **{
                name: f"{row[name] / 1e6:.0f} MB"
                for name in ("weights", "optimizer", "activations")
            },
            "foretold": f"{row['foretold'] / 1e6:.0f} MB",
            "measured": f"{row['measured'] / 1e6:.0f} MB",
            "measured to foretold": f"{row['measured'] / row['foretold']:.2f}",
            "with holes in the heap": f"{row['measured_in_heap'] / row['foretold']:.2f}",
        }
        for row in rows
    ]


def published_name(shape: str) -> str:
    """The published model of a shape."""
    return f"parakeet-{shape}" if shape.startswith(("rnnt", "tdt")) else f"parakeet-ctc-{shape}"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
