"""The whole job with a recognizer from elsewhere: import, train, sweep, front, graphs, sherpa-onnx.

A FastConformer of chance, made and saved by transformers' own class, is imported and learns the
demo corpus, which eSpeak NG speaks, from its transcripts; it is then the teacher of a sweep. Of
every model of the front the graph is compared with torch, and three of them, the largest, the one
in the middle and the smallest, are exported to sherpa-onnx, whose texts are compared with those of
`transcribe` on all of dev and test: as they are, and hearing what sherpa-onnx computes, as
`import --for-sherpa` has it. What is done stays in --dir, so an interrupted run goes on.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers
import torch
import transformers

from benchmarks.lib.cells import Cell, trained
from benchmarks.lib.measurement import arguments, emit
from benchmarks.robustness.graphs import compared, models
from benchmarks.robustness.sherpa import PRECISIONS, utterances
from core import bundle
from core.config.trial import CorpusConfig, DemoConfig, TrialConfig
from core.data.sources.demo import speak, write_script
from core.evaluation.wer import word_errors
from core.export.export import export
from core.export.verify import TOLERANCE, compare_texts
from core.files import atomic_folder
from core.importers.load import spec_for_sherpa
from sweep.config.toml_writer import lines
from sweep.snapshot import load_snapshot

DEMO = DemoConfig(train_utterances=4000, dev_utterances=300, test_utterances=300)
PIECES = 500  # whole words, where there are no more to merge
ENCODER = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "subsampling_conv_channels": 32,
    "subsampling_factor": 4,
}
TRAINING = {"batch_seconds": 20.0}
TARGETS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
FOR_SHERPA = "for_sherpa_"
"""Of what is measured of a model that hears as sherpa-onnx does."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/imported"))
    parser.add_argument("--steps", type=int, default=2000, help="in which it learns the corpus")
    parser.add_argument("--trials", type=int, default=6)
    args = parser.parse_args()
    root: Path = args.dir.resolve()
    corpus = speak(DEMO, root / "corpus")
    if not (root / "published").is_dir():
        publish(root / "published")
    if not bundle.is_whole(root / "brought"):
        command("import", root / "published", root / "brought")
    teacher = learnt(root, corpus, args.steps)
    space = root / "space.toml"
    space.write_text("\n".join(lines(sweep_of(corpus, teacher, args.trials))))
    command("run", space, "--dir", root / "sweep")
    rows = list(tabulated(root, corpus))
    gap = max(row["gap"] for row in rows)
    values = {"gap": gap, "is_within": gap <= TOLERANCE, "points": len(rows)}
    in_runtime = [row for row in rows if "equal" in row]
    for kind in ("", FOR_SHERPA):
        different = sum(row[f"{kind}utterances"] - row[f"{kind}equal"] for row in in_runtime)
        added = max(row[f"{kind}wer_added_int8"] for row in in_runtime)
        values |= {f"{kind}different": different, f"{kind}wer_added_int8": added}
    emit("imported", rows, values, args)


def publish(folder: Path) -> None:
    """A model of chance as transformers saves it, with pieces of what the corpus says."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = tokenizers.decoders.Metaspace(replacement="\u2581")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=["<unk>"], show_progress=False
    )
    said = (line.text for line in write_script(DEMO)["train"])
    tokenizer.train_from_iterator(said, trainer)
    tokenizer.add_special_tokens(["<pad>"])
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    config = transformers.ParakeetCTCConfig(
        vocab_size=size, pad_token_id=size - 1, encoder_config=ENCODER
    )
    with atomic_folder(folder) as beside:
        transformers.ParakeetForCTC(config).save_pretrained(beside)
        transformers.ParakeetFeatureExtractor().save_pretrained(beside)
        tokenizer.save(str(beside / "tokenizer.json"))


def command(*words: object) -> None:
    """As a user says it."""
    subprocess.run([sys.executable, "-m", "sweep", *map(str, words)], check=True)  # noqa: S603


def learnt(root: Path, corpus: Path, steps: int) -> Path:
    """The imported model once it has learned the corpus: a trial that removes nothing."""
    config = TrialConfig.parse(
        {
            "corpus": {"name": str(corpus), "case": "lower"},
            "teacher": {"bundle": str(root / "brought")},
            "pruning": {"method": "dense", "steps": 0},
            "distillation": {"logit_weight": 0.0, "layer_weight": 0.0},
            "tuning": {"steps": steps, "learning_rate": 1e-3},
            "training": TRAINING,
            "runtime": {"report_steps": 500, "checkpoint_steps": 100},
        }
    )
    cell = Cell(name="learning", target="", seed=0, config=config)
    if not cell.is_done(root):
        trained([cell], root, 1)
    (model,) = cell.models(root)
    return model


def sweep_of(corpus: Path, teacher: Path, trials: int) -> dict[str, Any]:
    """Orders that serve every size, of two methods."""
    return {
        "sweep": {"trials": trials, "seed": 7},
        "resources": {"cpus": 1},
        "trial": {
            "corpus": {"name": str(corpus), "case": "lower"},
            "teacher": {"bundle": str(teacher)},
            "pruning": {
                "method": {"choice": ["acip", "numerical"]},
                "resource": "flops",
                "target_sparsity": {"uniform": [0.2, 0.3]},
                "further_targets": TARGETS,
                "steps": 200,
            },
            "tuning": {"steps": 200, "learning_rate": 1e-3},
            "training": TRAINING,
            "runtime": {"report_steps": 200, "checkpoint_steps": 100},
        },
    }


def tabulated(root: Path, corpus: Path) -> Iterator[dict[str, Any]]:
    """One row a point of the front, its removed share first."""
    front = sorted(load_snapshot(root / "sweep").front, key=lambda point: point.result.gflops)
    exported = {front[0].name, front[len(front) // 2].name, front[-1].name}
    folders = dict(models(root / "sweep", is_all=False))
    for point in front:
        row = {
            "name": point.name,
            "flops_removed": point.result.flops_sparsity,
            "wer": point.result.wer,
            **compared(point.name, folders[point.name]),
        }
        yield row | (exports(folders[point.name], corpus) if point.name in exported else {})


def exports(model: Path, corpus: Path) -> dict[str, Any]:
    """Of a model as it is, and of the same hearing what sherpa-onnx computes."""
    found = bundle.load(model)
    heard = in_sherpa(model, corpus)
    with TemporaryDirectory() as scratch:
        other = Path(scratch) / "for-sherpa"
        bundle.save(other, spec_for_sherpa(found.model), found.tokenizer, found.report)
        return heard | {f"{FOR_SHERPA}{key}": v for key, v in in_sherpa(other, corpus).items()}


def in_sherpa(model: Path, corpus: Path) -> dict[str, Any]:
    """Texts equal to those of `transcribe`, and what 8-bit integers add to the errors."""
    files, said = zip(*utterances(CorpusConfig(name=str(corpus), case="lower")), strict=True)
    opened = bundle.load(model)
    with TemporaryDirectory() as scratch:
        export(model, Path(scratch) / "export", "sherpa", is_int8=True)
        floats, integers = (
            compare_texts(opened, Path(scratch) / "export", files, name) for name in PRECISIONS
        )
    in_floats = word_errors(said, floats.alone).wer
    return {
        "utterances": len(files),
        "equal": floats.equal,
        "wer_transcribe": word_errors(said, floats.reference).wer,
        "wer_sherpa": in_floats,
        "wer_added_int8": word_errors(said, integers.alone).wer - in_floats,
    }


if __name__ == "__main__":
    main()
