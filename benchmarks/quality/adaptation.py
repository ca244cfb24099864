"""New words for a pruned recognizer: what it learns, and what it forgets, by each way of training.

Real spoken commands, recordings of one second each, are parted into five old and four new words. A
teacher learns the old ones and is pruned by magnitude; then each way has the same steps. `boosted`
is two encoders, and on the way to the rows below it, which have its steps twice, half of them
boosting.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import soundfile
import torch
from rich.console import Console
from torch import nn

from benchmarks.lib.measurement import arguments, emit
from core import bundle
from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.corpus import Corpus, open_corpus, with_memory
from core.data.feature_cache import FeatureStore, open_or_build
from core.data.prepare import Speech
from core.data.tokenizer import Tokenizer, transcript
from core.evaluation.batch_decoding import decode_store
from core.evaluation.wer import bootstrap, word_errors
from core.files import atomic_folder
from core.pruning.reconstruction import reestimate_statistics
from core.report import Report
from core.runtime import TrialDirs, seed_everything
from core.teacher import prepare
from core.training.foster_stage import (
    Boosted,
    Boosting,
    Compression,
    FosterStage,
    extend_vocabulary,
)
from core.training.loop import DenseStage, augment_batch
from core.training.method import tuning_rates
from core.training.setup import calibration_batches, make_train_run, without_words
from core.trial import run

CPU = torch.device("cpu")
OLD_WORDS = frozenset({"DOWN", "EIGHT", "FIVE", "GO", "LEFT"})
WORD_SAMPLES = 16_000
BETAS = {
    "compressed plain": 0.0,
    "compressed, balanced by 0.9": 0.9,
    "compressed, balanced by 0.97": 0.97,
}

log = Console(stderr=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeches:
    """What is trained on, and the two kinds that are judged on: dev and test together."""

    tokenizer: Tokenizer
    new: FeatureStore
    new_and_memory: FeatureStore
    evaluate: Mapping[str, list[FeatureStore]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/commands"))
    parser.add_argument("--dir", type=Path, default=Path("runs/adapting"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--pruned-steps", type=int, default=250, help="of tuning what was pruned")
    parser.add_argument("--steps", type=int, default=500, help="of each way, and of each stage")
    parser.add_argument("--memory-share", type=float, default=0.1)
    parser.add_argument("--balance", type=float, default=1.0, help="old utterances a new one")
    parser.add_argument("--removed", type=float, default=0.5, help="share of FLOPs")
    args = parser.parse_args()
    root = args.dir.resolve()
    for kind in ("old", "new"):
        part_words(args.data, root / kind, is_old=kind == "old")
    source = pruned(root, args)
    speeches = prepared(root, source.tokenizer, args)
    heard: dict[str, list[dict[str, Any]]] = {}
    for seed in range(args.seeds):
        for name, model in ways(root, source, speeches, args, seed):
            heard.setdefault(name, []).append(errors_of(model, speeches))
            log.print(f"seed {seed} {row_of(name, heard[name])}")
    rows = [row_of(name, each) for name, each in heard.items()]
    names = (
        "teacher_steps",
        "pruned_steps",
        "steps",
        "memory_share",
        "balance",
        "removed",
        "seeds",
    )
    emit("adapting", rows, {name: getattr(args, name) for name in names}, args)


def part_words(source: Path, folder: Path, *, is_old: bool) -> None:
    """Of every utterance whose words are all one second long, the old or the new ones."""
    if folder.exists():
        return
    with atomic_folder(folder) as beside:
        for lines in sorted(source.glob("*/*/*/*.trans.txt")):
            said = [
                kept
                for line in lines.read_text().splitlines()
                if (kept := kept_of(lines.parent, line, is_old=is_old))
            ]
            if not said:
                continue
            chapter = beside / lines.parent.relative_to(source)
            chapter.mkdir(parents=True)
            for name, _, samples in said:
                soundfile.write(chapter / f"{name}.flac", samples, 16_000)
            text = "".join(f"{name} {' '.join(words)}\n" for name, words, _ in said)
            (chapter / lines.name).write_text(text)


def kept_of(folder: Path, line: str, *, is_old: bool) -> tuple[str, list[str], Any] | None:
    name, *words = line.split()
    samples, _ = soundfile.read(folder / f"{name}.ogg")
    places = [i for i, word in enumerate(words) if (word in OLD_WORDS) == is_old]
    if len(samples) != len(words) * WORD_SAMPLES or not places:
        return None
    seconds = torch.from_numpy(samples).view(len(words), WORD_SAMPLES)
    return name, [words[i] for i in places], seconds[places].flatten().numpy()


def config_of(root: Path, args: argparse.Namespace, *, seed: int = 0) -> TrialConfig:
    return TrialConfig.parse(
        {
            "seed": seed,
            "corpus": {"name": str(root / "old"), "tokens": "word", "vocabulary": 16},
            "model": {
                "blocks": 3,
                "width": 48,
                "inner": 192,
                "channels": 48,
                "frontend_channels": 16,
            },
            "teacher": {"steps": args.teacher_steps},
            "pruning": {"method": "magnitude", "target_sparsity": args.removed, "steps": 0},
            "tuning": {"steps": args.pruned_steps, "learning_rate": 1e-3},
            "training": {"batch_seconds": 16.0},
            "runtime": {"report_steps": 200, "checkpoint_steps": 200},
        }
    )


def pruned(root: Path, args: argparse.Namespace) -> bundle.Bundle:
    """The teacher, pruned and tuned on old words alone."""
    config = config_of(root, args)
    place = TrialDirs(teacher=root / "teacher", features=root / "features", trial=root / "pruned")
    for report in chain(prepare(config, place), run(config, place)):
        log.print(f"{report.stage} {report.step}/{report.total_steps} WER {report.wer}")
    return bundle.load(place.trial / "model")


def prepared(root: Path, known: Tokenizer, args: argparse.Namespace) -> Speeches:
    config = config_of(root, args).corpus
    corpora = {
        kind: open_corpus(config.model_copy(update={"name": str(root / kind)}), root)
        for kind in ("old", "new")
    }
    tokens = known.with_words(map(transcript, corpora["new"].train))
    both = with_memory(
        corpora["new"], corpora["old"], share=args.memory_share, seed=0, balance=args.balance
    )

    def stored(corpus: Corpus, split: Any) -> FeatureStore:
        return open_or_build(corpus, split, tokens, config, root / "stores")

    return Speeches(
        tokenizer=tokens,
        new=stored(corpora["new"], "train"),
        new_and_memory=stored(both, "train"),
        evaluate={
            kind: [stored(corpus, "dev"), stored(corpus, "test")]
            for kind, corpus in corpora.items()
        },
    )


def ways(
    root: Path, source: bundle.Bundle, speeches: Speeches, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Each way's model, trained."""
    config = config_of(root, args, seed=seed)
    old, size, steps = source.model.requires_grad_(), speeches.tokenizer.size, args.steps
    yield "before", old
    for name, store, times in (
        ("fine-tuned", speeches.new, 1),
        ("fine-tuned with memory", speeches.new_and_memory, 1),
        ("the same, twice the steps", speeches.new_and_memory, 2),
    ):
        stage = dense_stage(extend_vocabulary(old, size), config, times * steps)
        yield name, walked(stage, store, config, speeches).model
    shared: dict[str, Any] = {
        "rates": tuning_rates(config),
        "runtime": config.runtime,
        "counts": speeches.new_and_memory.token_counts(size),
    }
    network = Boosted(old, size)
    for name, beta in BETAS.items():
        boosting = config.boosting.model_copy(update={"compress_beta": beta})
        is_first = name == next(iter(BETAS))
        first = Boosting(network, steps=steps if is_first else 0, config=boosting, **shared)
        none = Compression(
            extend_vocabulary(old, size), network, steps=0, config=boosting, **shared
        )
        if is_first:
            walked(FosterStage(first, none, unjudged), speeches.new_and_memory, config, speeches)
            yield "boosted", network
        rest = Boosting(network, steps=0, config=boosting, **shared)
        last = Compression(
            extend_vocabulary(old, size), network, steps=steps, config=boosting, **shared
        )
        fostering = FosterStage(rest, last, unjudged)
        yield name, walked(fostering, speeches.new_and_memory, config, speeches).model


def dense_stage(model: Conformer, config: TrialConfig, steps: int) -> DenseStage:
    return DenseStage(
        model,
        stage="tune",
        steps=steps,
        rates=tuning_rates(config),
        evaluator=None,
        runtime=config.runtime,
    )


def unjudged(heard: nn.Module) -> Report:
    del heard
    return Report(stage="tune", step=0, total_steps=0)


def walked(stage: Any, store: FeatureStore, config: TrialConfig, speeches: Speeches) -> Any:
    """A stage at its end, from the beginning of the data; nothing is kept on the way."""
    seed_everything(config, 1)
    dev, test = speeches.evaluate["new"]
    speech = Speech(tokenizer=speeches.tokenizer, train=store, dev=dev, test=test)
    train_run = make_train_run(config, Path("unused"), speech, CPU, stage.steps)
    for step, batch in zip(range(stage.steps), train_run.batches, strict=False):
        stage.step(augment_batch(batch, train_run), step)
    reestimate_statistics(stage.model, without_words(calibration_batches(config, speech, CPU)))
    return stage


def errors_of(model: nn.Module, speeches: Speeches) -> dict[str, Any]:
    """Errors and words an utterance of each kind, and the size."""
    found: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    for kind, stores in speeches.evaluate.items():
        texts = [t for store in stores for t in decode_store(model, store, speeches.tokenizer, CPU)]
        counted = word_errors([t for store in stores for t in store.texts], texts)
        found[kind] = (counted.errors, counted.words)
    return found


def row_of(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, with intervals over utterances."""
    row: dict[str, Any] = {"name": name, "params": seeds[0]["params"]}
    for kind in ("old", "new"):
        words = seeds[0][kind][1]
        errors = [sum(e) / len(seeds) for e in zip(*(s[kind][0] for s in seeds), strict=True)]
        low, high = bootstrap(errors, words, samples=2000, confidence=0.95, seed=0)
        rates = {"wer": sum(errors) / sum(words), "wer_low": low, "wer_high": high}
        row |= {f"{kind}_{key}": value for key, value in rates.items()}
    return row | {"seeds": len(seeds)}


if __name__ == "__main__":
    main()
