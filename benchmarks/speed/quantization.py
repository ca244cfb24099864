"""What 8-bit integers cost in words and save in time: one bundle, four ways to run it, batch 1."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.lib.measurement import arguments, emit, on_one_utterance
from core import bundle
from core.conformer.model import Conformer
from core.data.batching import dev_batches
from core.data.prepare import Speech, open_speech
from core.evaluation.batch_decoding import decode_store
from core.evaluation.wer import wer_report
from core.export.onnx.conversion import export_onnx
from core.export.onnx.quantization import quantize_activations, quantize_weights
from core.inference.onnx_session import Graph

CPU = torch.device("cpu")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True, help="a sweep's features folder")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1, 3, 10, 30], help="of utterances to time"
    )
    parser.add_argument("--calibration", type=int, default=8, help="batches that ranges come from")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    opened, speech = bundle.load(args.bundle), open_speech(args.features)
    with TemporaryDirectory() as scratch:
        files = written(opened.model, speech, Path(scratch), args.calibration)
        models: dict[str, nn.Module] = {"torch": opened.model}
        models |= {name: Graph(file, threads=args.threads) for name, file in files.items()}
        sizes = {"torch": (args.bundle / "model.safetensors").stat().st_size}
        sizes |= {name: file.stat().st_size for name, file in files.items()}
        heard = {name: errors(model, speech) for name, model in models.items()}
        rows = []
        for seconds in args.seconds:
            taken = on_one_utterance(models, seconds, repeats=args.repeats)
            rows += [
                {"name": name, "megabytes": sizes[name] / 1e6, "seconds": seconds}
                | speed(taken, name)
                | heard[name]
                for name in models
            ]
    emit("quantisation", rows, ratios(rows), args)


def written(model: Conformer, speech: Speech, folder: Path, calibration: int) -> dict[str, Path]:
    """The graphs: in floats, and in integers with ranges found at run time or beforehand."""
    names = ("onnxruntime", "int8 dynamic", "int8 static")
    files = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in names}
    whole, dynamic, static = files.values()
    export_onnx(model, whole)
    quantize_weights(whole, dynamic)
    heard = itertools.islice(dev_batches(speech.train, 60.0), calibration)
    quantize_activations(whole, static, ((batch.features, batch.num_frames) for batch in heard))
    return files


def speed(taken: dict[str, list[float]], name: str) -> dict[str, float]:
    """Latency, and how many times as fast as eager torch and as ONNX Runtime in floats."""

    def over(other: str) -> float:
        pairs = zip(taken[other], taken[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    return {
        "ms": 1000 * statistics.median(taken[name]),
        "over_torch": over("torch"),
        "over_onnxruntime": over("onnxruntime"),
    }


def errors(model: nn.Module, speech: Speech) -> dict[str, float]:
    """Word error rates on dev and on test."""
    found = {}
    for name, store in (("wer", speech.dev), ("test_wer", speech.test)):
        if len(store):
            heard = decode_store(model, store, speech.tokenizer, CPU)
            found[name] = wer_report(store.texts, heard).wer
    return found


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the law is about: the least times as fast, and the most that integers add to the WER."""
    by: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by[row["name"]].append(row)
    floats, wers = by["onnxruntime"][0], [key for key in ("wer", "test_wer") if key in rows[0]]
    found = {"ratio_onnxruntime": min(row["over_torch"] for row in by["onnxruntime"])}
    for name, key in (("int8 dynamic", "dynamic"), ("int8 static", "static")):
        found[f"ratio_{key}"] = min(row["over_onnxruntime"] for row in by[name])
        found[f"wer_added_{key}"] = max(by[name][0][wer] - floats[wer] for wer in wers)
    return found


if __name__ == "__main__":
    main()
