"""Whether other programs hear of a transducer what `transcribe` hears, and when: texts and times.

Weights are drawn and balanced so that a model says all its tokens: texts and times turn on small
differences, more than those of a trained model. Each program searches greedily with its own limit
of tokens at a frame, and so does the search that it is compared with. sherpa-onnx's times of NeMo's
kind and of its own, onnx-asr's and transformers' are compared token by token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.bundle import Bundle
from core.conformer.shape import Shape, TransducerShape
from core.data.audio import read_file
from core.decoders.greedy import MOST_SYMBOLS, Symbol
from core.export.export import export
from core.export.onnx_asr import transcribe_with_onnx_asr, with_its_spaces
from core.export.sherpa import transcribe_with_sherpa
from core.export.sherpa_transducer import choose_kind
from core.export.transformers_check import MOST_OF_TDT, run_transformers
from core.export.verify import one_space
from core.export.worker_process import RuntimeTranscripts
from core.inference.long_audio import compute_frames
from core.testing import FRONTEND_SPECS, SHAPE, small_model, with_frontend
from sweep.cli.transcribe_files import find_audio_files
from tests.support.drawn_recognizers import balance, short_tokenizer

Runtime = Literal["sherpa", "onnx-asr", "transformers"]
KINDS = {
    "RNN-T, stateless": TransducerShape(embedding=32, context=2, joint=32),
    "RNN-T, LSTM": TransducerShape(embedding=24, units=(32, 24), joint=32, activation="relu"),
    "TDT, LSTM": TransducerShape(
        embedding=24, units=(32,), joint=32, activation="relu", durations=(0, 1, 2, 3, 4)
    ),
}
STAYS = 3.0
"""By which the logit of a duration of 0 is lowered."""
SAME_TIME = 0.005
"""Seconds; a frame has 0.04 or more."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, nargs="+", required=True)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    files = [file for file, _ in find_audio_files(args.audio)][: args.utterances]
    sounds = [read_file(file) for file in files]
    rows = []
    with TemporaryDirectory() as scratch:
        for number, (name, runtime, shape) in enumerate(cases()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            opened = drawn(shape, folder, seed=args.seed)
            export(folder / "model", folder / "out", runtime, verify_on=files[:1])
            heard = hear(opened, runtime, folder / "out", sounds)
            rows.append({"name": name, "runtime": runtime, **row(opened, runtime, sounds, heard)})
    different = sum(each["utterances"] - each["equal"] for each in rows)
    emit("transducers", rows, {"seed": args.seed, "different": different}, args)


def cases() -> Iterator[tuple[str, Runtime, Shape]]:
    """Each kind in each program that takes it."""
    nemo = with_frontend(SHAPE, "dw_striding 8x")
    spec = FRONTEND_SPECS["dw_striding 8x"]
    of_sherpa = replace(nemo, frontend_spec=spec.for_sherpa(has_transducer=True))
    for name, transducer in KINDS.items():
        own, by_nemo, by_sherpa = (
            replace(shape, transducer=transducer, has_ctc=False)
            for shape in (SHAPE, nemo, of_sherpa)
        )
        if not transducer.units:
            yield name, "sherpa", own
        yield f"{name}, NeMo's kind", "sherpa", by_sherpa
        yield name, "onnx-asr", by_nemo
        if transducer.units:
            yield name, "transformers", by_nemo


def drawn(shape: Shape, folder: Path, *, seed: int) -> Bundle:
    tokenizer = short_tokenizer(folder)
    model = small_model(seed, shape=replace(shape, vocabulary=tokenizer.size)).eval()
    model.frontend.mean.zero_()
    model.frontend.deviation.fill_(1.0)
    balance(model)
    if model.transducer is not None and model.transducer.joint.durations:
        with torch.no_grad():  # so that most tokens take time: drawn ones would stay for ever
            model.transducer.joint.output.bias[tokenizer.size] -= STAYS
    bundle.save(folder / "model", model, tokenizer, {})
    return bundle.load(folder / "model")


def hear(
    opened: Bundle, runtime: Runtime, folder: Path, sounds: Sequence[Any]
) -> RuntimeTranscripts:
    """What a program hears, in a process of its own."""
    if runtime == "transformers":
        outputs = run_transformers(folder, opened.model, sounds=sounds)
        seconds = frame_seconds(opened)
        times = tuple(tuple(seconds * frame for frame in own) for own in outputs.frames)
        return RuntimeTranscripts(
            alone=outputs.alone, together=outputs.together, times=times, version=outputs.version
        )
    run = transcribe_with_sherpa if runtime == "sherpa" else transcribe_with_onnx_asr
    return run(folder, sounds)


def most_symbols(opened: Bundle, runtime: Runtime) -> int:
    """The program's limit of tokens at a frame."""
    if runtime == "sherpa":
        return choose_kind(opened.model).most_symbols
    shape = opened.model.shape.transducer
    assert shape is not None
    return MOST_OF_TDT if runtime == "transformers" and shape.durations else MOST_SYMBOLS


def row(
    opened: Bundle, runtime: Runtime, sounds: Sequence[Any], heard: RuntimeTranscripts
) -> dict[str, Any]:
    """How many texts, and how many lists of times, are those of the same search in torch."""
    most = most_symbols(opened, runtime)
    own = [symbols_of(opened, sound, most_symbols=most) for sound in sounds]
    texts = [opened.tokenizer.decode([s.token for s in symbols]) for symbols in own]
    if runtime == "onnx-asr":
        texts = list(map(with_its_spaces, texts))
    usual = [symbols_of(opened, sound, most_symbols=MOST_SYMBOLS) for sound in sounds]
    return {
        "most_symbols": most,
        "utterances": len(sounds),
        "tokens": sum(map(len, own)),
        "equal": sum(map(is_equal, texts, heard.alone, heard.together)),
        "equal_times": sum(
            is_same_time(opened, symbols, times)
            for symbols, times in zip(own, heard.times, strict=True)
        ),
        "as_transcribe": sum(a == b for a, b in zip(own, usual, strict=True)),
        "version": heard.version,
    }


def symbols_of(opened: Bundle, sound: Any, *, most_symbols: int) -> list[Symbol]:
    encoded, transducer = compute_frames(opened.model, sound).encoded, opened.model.transducer
    assert encoded is not None
    assert transducer is not None
    num_frames = torch.tensor([len(encoded)])
    return transducer.greedy(encoded[None], num_frames, most_symbols=most_symbols)[0]


def is_equal(text: str, alone: str, together: str) -> bool:
    return one_space(alone) == one_space(together) == one_space(text)


def is_same_time(opened: Bundle, symbols: Sequence[Symbol], times: Sequence[float]) -> bool:
    ours = [frame_seconds(opened) * symbol.frame for symbol in symbols]
    return len(ours) == len(times) and all(
        abs(a - b) < SAME_TIME for a, b in zip(ours, times, strict=True)
    )


def frame_seconds(opened: Bundle) -> float:
    return 0.01 * opened.model.frontend_spec.subsampling


if __name__ == "__main__":
    main()
