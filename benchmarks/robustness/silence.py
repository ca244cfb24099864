"""What a recognizer writes where nothing is said: silence, and speech as telephones and files give.

Trains the teacher of a search space with and without the silence, levels, noise and bandwidth of
`[trial.training.augment]`, and gives each the test speech as it is; with two seconds of digital
zeros before, after or between its words; padded with zeros to four seconds; at -60 dBFS; clipped;
with an offset; with nothing above 4 kHz. Word error rates are in %. Of files without speech, two
seconds each, the words that are written are counted: all zeros, noise of 1e-5, and of -60 dBFS.
Teachers are kept in --dir.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import resample

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import TrialConfig
from core.data.audio import read_cut
from core.data.corpus import open_split
from core.data.tokenizer import transcript
from core.evaluation.wer import word_errors
from core.features.kaldi import SAMPLE_RATE_HZ
from core.inference.recognizer import transcribe_waveform
from core.runtime import TrialDirs
from core.teacher import prepare
from sweep.config.sweep import load

WITHOUT = dict.fromkeys(
    ("silence_share", "empty_share", "level_share", "noise_share", "band_share"), 0.0
)
VARIANTS: dict[str, dict[str, float]] = {"without": WITHOUT, "with": {}}
SILENT_FILES = 20
"""Of each kind; the zeros are one file, as all are alike."""
_TWO_SECONDS = 2 * SAMPLE_RATE_HZ

Waveform = Float[Tensor, " samples"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--space", default="demo", help="a search space: its name or file")
    parser.add_argument("--corpus", help="instead of the search space's")
    parser.add_argument("--dir", type=Path, default=Path("runs/silence"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="instead of the search space's")
    args = parser.parse_args()
    rows = [row_of(args, name, seed) for seed in args.seeds for name in args.variants]
    emit("silence", rows, {"space": args.space}, args)


def row_of(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train a teacher, unless it is there, and measure it."""
    config = config_of(args, VARIANTS[variant], seed)
    place = place_of(args, variant, seed)
    for report in prepare(config, place):
        Console(stderr=True).print(f"{variant} {seed} {report.stage} {report.step} {report.wer}")
    torch.set_num_threads(config.runtime.threads)
    model = bundle.load(place.teacher / "model")
    cuts = list(open_split(config.corpus, place.features, "test"))
    speech, references = [read_cut(cut) for cut in cuts], [transcript(cut) for cut in cuts]
    row: dict[str, Any] = {"name": f"{args.space} {variant}", "seed": seed}
    for name, change in CONDITIONS.items():
        hypotheses = [transcribe_waveform(model, change(waveform)) for waveform in speech]
        row[name] = 100 * word_errors(references, hypotheses).wer
    for name, files in silent_files().items():
        row[f"words in {name}"] = sum(
            len(transcribe_waveform(model, file).split()) for file in files
        )
    return row


def config_of(args: argparse.Namespace, augment: dict[str, float], seed: int) -> TrialConfig:
    """The search space's own, but for what is compared."""
    plain = load(args.space).space.base.model_dump()
    plain["seed"] = seed
    plain["training"]["augment"] |= augment
    if args.corpus:
        plain["corpus"]["name"] = str(Path(args.corpus).resolve())
    if args.steps:
        plain["teacher"]["steps"] = args.steps
    return TrialConfig.model_validate(plain)


def place_of(args: argparse.Namespace, variant: str, seed: int) -> TrialDirs:
    """Teachers share their speech and nothing else."""
    root = args.dir.resolve() / Path(args.space).stem
    trial = root / f"{variant}-{seed}"
    return TrialDirs(teacher=trial / "teacher", features=root / "features", trial=trial)


def silent_files() -> dict[str, list[Waveform]]:
    """Two seconds each in which nothing is said."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(_TWO_SECONDS, generator=generator) for _ in range(SILENT_FILES)]
    return {
        "zeros": [torch.zeros(_TWO_SECONDS)],
        "1e-5": [1e-5 * samples for samples in noise],
        "-60 dBFS": [1e-3 * samples for samples in noise],
    }


def between(waveform: Waveform) -> Waveform:
    """Two seconds of zeros put in where the middle half is quietest for 50 ms."""
    width = SAMPLE_RATE_HZ // 20
    begin = len(waveform) // 4
    power = F.avg_pool1d(waveform[None, begin : len(waveform) - begin].square(), width, 1)[0]
    middle = begin + int(power.argmin()) + width // 2
    return torch.cat([waveform[:middle], torch.zeros(_TWO_SECONDS), waveform[middle:]])


def at_60_below(waveform: Waveform) -> Waveform:
    return waveform * (1e-3 / waveform.square().mean().sqrt().clamp_min(1e-9))


def clipped(waveform: Waveform) -> Waveform:
    """A tenth of the peak is all that is left."""
    limit = float(waveform.abs().max()) / 10
    return waveform.clamp(-limit, limit)


def as_by_telephone(waveform: Waveform) -> Waveform:
    """Recorded with 8000 samples a second."""
    return resample(resample(waveform, SAMPLE_RATE_HZ, 8000), 8000, SAMPLE_RATE_HZ)


CONDITIONS: dict[str, Callable[[Waveform], Waveform]] = {
    "clean": lambda waveform: waveform,
    "before": lambda waveform: F.pad(waveform, (_TWO_SECONDS, 0)),
    "after": lambda waveform: F.pad(waveform, (0, _TWO_SECONDS)),
    "between": between,
    "to 4 s": lambda waveform: F.pad(waveform, (0, max(0, 2 * _TWO_SECONDS - len(waveform)))),
    "-60 dBFS": at_60_below,
    "clipped": clipped,
    "offset": lambda waveform: waveform + 0.1,
    "4 kHz": as_by_telephone,
}


if __name__ == "__main__":
    main()
