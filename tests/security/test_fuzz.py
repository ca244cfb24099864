"""Damaged files, made by mutation: each gives a model, a table or one clear error, nothing else.

The same cases in every run; `BAD_INPUT=10 pytest tests/security/test_fuzz.py` takes ten times as
many. A guard in the process sees whatever is run, fetched, unpickled or written outside.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_outcomes import make_outcome
from safetensors.torch import save as save_tensors

from core import bundle
from core.config.base import ConfigError
from core.config.trial import CorpusConfig
from core.data.feature_cache import FeatureStore
from core.data.prepare import open_speech
from core.data.tokenizer import Tokenizer
from core.digests import speech_lineage
from core.evaluation.ngram import NGram
from core.export.tokenizer_json import blank_name, fast_tokenizer
from core.importers.load import read_model
from core.importers.safe_read import read_archive, read_checkpoint, read_safetensors, read_yaml
from core.importers.tokenizer import read_tokens
from core.pruning.latency_table import LatencyTable
from core.safe_text import terminal_line
from core.testing import SHAPE, small_model
from core.training import checkpoint
from sweep.config.distributions import Range
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import FILE, JOURNAL
from sweep.ledger.ledger import Ledger
from sweep.search.warm_start import warm_start_records
from sweep.storage.archive import pack, unpack
from sweep.storage.foreign_sweep import check_tracking_database
from tests.support.arpa import write_arpa

TIMES = int(os.environ.get("BAD_INPUT", "1"))
LEAVES = {"pruning.target_sparsity": Range(low=0.2, high=0.8)}
ABSURD = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "../../x", "/etc/passwd", "\0", "\x1b[31m", "é" * 300, "http://127.0.0.1:1/"),
    *([], {}, [[]], [None], {"": None}, [1, 2, 3], {"x": [1]}, "file:///etc", "!!python/name:os"),
]


def mutate(content, rng):
    """Bytes with a few slips: flipped, cut, doubled, moved, or of another file."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        at = rng.randrange(len(data) + 1) if data else 0
        size = rng.choice([1, 1, 2, 4, 8, 64, 512])
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = bytes(rng.randrange(256) for _ in range(size))
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at : at + size] = rng.choice([b"\0", b"\xff", b"9", b"\x80"]) * size
            case 5 if rng.random() < 0.3:
                del data[at:]
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
    return bytes(data)


def mutate_value(value, rng):
    """A value of JSON with one place of it gone, doubled, renamed, or of another kind."""
    value = json.loads(json.dumps(value))
    container, key = _a_place(value, rng)
    if container is None:
        return rng.choice(ABSURD)
    match rng.randrange(5):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[f"{key}_"] = container.pop(key)
        case 2 if isinstance(container, list):
            container.insert(0, container[key])
        case 3:
            other, name = _a_place(value, rng)
            container[key] = json.loads(json.dumps(other[name]))
        case _:
            container[key] = rng.choice(ABSURD)
    return value


def _a_place(value, rng):
    choices = []

    def walk(inner):
        keys = inner if isinstance(inner, dict) else range(len(inner))
        for key in list(keys)[:200]:
            choices.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    if isinstance(value, dict | list):
        walk(value)
    return rng.choice(choices) if choices else (None, None)


def error_of(read, made):
    try:
        read(made)
    except Exception as error:  # noqa: BLE001  # which one is what is asked
        return error
    return None


def is_clear(error):
    """An error of ours, in a line; a config has a line for each culprit."""
    is_ours = type(error).__module__.startswith(("core.", "sweep."))
    is_one = len(str(error).splitlines()) == 1 or isinstance(error, ConfigError)
    return is_ours and is_one and len(terminal_line(str(error))) < 20_000


@pytest.fixture
def law(guard_effects, tmp_path):
    """Judges a reader on so many mutations: what `make` writes for a seed, `read` reads."""

    def law(number, make, read):
        faults = []
        with guard_effects(tmp_path):
            for seed in range(number * TIMES):
                error = error_of(read, make(random.Random(seed)))
                if error is not None:
                    assert is_clear(error), f"seed {seed}: {error!r}"
                    faults.append(error)
        assert len(faults) > number * TIMES // 10  # or nothing was damaged

    return law


# ---- models of others ----


def make_archive(files, how="w"):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=how) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def save(value):
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


TENSORS = {"encoder.w": torch.arange(12.0).reshape(3, 4), "encoder.b": torch.ones(4).half()}
SETTINGS = b"encoder: {d_model: 16, n_heads: 2}\ntokenizer: {type: bpe, dir: x}\nlist: [1, 2]\n"
ARCHIVE = {
    "./model_config.yaml": SETTINGS,
    "./model_weights.ckpt": save(TENSORS),
    "./abc_tokenizer.model": b"x" * 100,
}


@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_a_damaged_archive_of_a_model(law, tmp_path, how):
    content = make_archive(ARCHIVE, how)

    def make(rng):
        data = mutate(content, rng)
        if how == "w:gz" and rng.random() < 0.5:  # damage behind a right checksum
            data = gzip.compress(mutate(gzip.decompress(content), rng), 1)
        (tmp_path / "x.nemo").write_bytes(data)
        return tmp_path / "x.nemo"

    law(80, make, read_archive)


@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_a_damaged_archive_opened_as_a_model(law, tmp_path, how):
    def make(rng):
        files = dict(ARCHIVE)
        name = rng.choice(list(files))
        files[name] = mutate(files[name], rng)
        (tmp_path / "x.nemo").write_bytes(make_archive(files, how))
        return tmp_path / "x.nemo"

    law(40, make, read_model)


def test_damaged_settings(law):
    tags = ["!!python/object/apply:os.system ['x']", "!!binary x", "&a [*a]", "<<: *b", "!x {}"]

    def make(rng):
        text = mutate(SETTINGS, rng)
        return text + f"\nextra: {rng.choice(tags)}\n".encode() if rng.random() < 0.3 else text

    law(120, make, lambda content: read_yaml(content, "x.yaml"))


def test_damaged_weights_of_torch(law):
    content = save(TENSORS)

    law(120, lambda rng: mutate(content, rng), lambda data: read_checkpoint(data, "x.ckpt"))


def test_damaged_safetensors(law, tmp_path):
    content = save_tensors(TENSORS)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def make(rng):
        made = mutate(content, rng)
        if rng.random() < 0.6:
            text = json.dumps(mutate_value(header, rng)).encode()
            size = len(text) if rng.random() < 0.8 else rng.choice([0, 2**40, 2**63, 7])
            made = size.to_bytes(8, "little") + text + data
        (tmp_path / "x.safetensors").write_bytes(made)
        return tmp_path / "x.safetensors"

    law(150, make, read_safetensors)


@pytest.mark.parametrize("kind", ["parakeet_ctc", "torchaudio_conformer"])
def test_damaged_settings_of_a_published_folder(law, tmp_path, kind):
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"model_type": kind, "vocab_size": 12, "pad_token_id": 11, "num_classes": 12}
    settings |= {"encoder_config": encoder, "input_dim": 80, "num_heads": 2, "ffn_dim": 32}
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes(save_tensors(TENSORS))

    def make(rng):
        text = json.dumps(mutate_value(settings, rng)).encode()
        (tmp_path / "m/config.json").write_bytes(mutate(text, rng) if rng.random() < 0.3 else text)
        return tmp_path / "m"

    law(60, make, read_model)


# ---- tokenizers ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["turn the kitchen light on", "what is the time now", "set a timer for ten minutes"]
    folder = tmp_path_factory.mktemp("tokens")
    return Tokenizer.train(texts, CorpusConfig(tokens="bpe", vocabulary=40), folder)


def test_a_damaged_tokenizer(law, tokenizer, tmp_path):
    def make(rng):
        (tmp_path / "tokenizer.model").write_bytes(mutate(tokenizer.model, rng))
        return tmp_path

    def read(folder):
        tokenizer_read = Tokenizer.load(folder)
        assert tokenizer_read.size >= 0
        Tokenizer.with_blank(tokenizer_read.model)

    law(150, make, read)


def test_a_damaged_fast_tokenizer(law, tokenizer, tmp_path):
    table = fast_tokenizer(tokenizer, blank_name(tokenizer))

    def make(rng):
        text = json.dumps(mutate_value(table, rng)).encode()
        (tmp_path / "tokenizer.json").write_bytes(mutate(text, rng) if rng.random() < 0.2 else text)
        return tmp_path

    size = tokenizer.size
    law(120, make, lambda folder: read_tokens(folder, vocabulary=size, blank=size - 1))


def test_a_damaged_language_model(law, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder")
    write_arpa(["one two three", "two three one"], tmp_path / "whole.arpa", order=3)
    content = (tmp_path / "whole.arpa").read_bytes()

    def make(rng):
        (tmp_path / "x.arpa").write_bytes(mutate(content, rng))
        return tmp_path / "x.arpa"

    law(120, make, NGram)


# ---- what a sweep keeps ----


@pytest.fixture(scope="module")
def packed_sweep(made_sweep, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "x.tar.gz"
    pack(made_sweep, file)
    return file.read_bytes()


def test_a_damaged_packed_sweep(law, packed_sweep, tmp_path):
    plain = gzip.decompress(packed_sweep)

    def make(rng):
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        is_inside = rng.random() < 0.7
        data = gzip.compress(mutate(plain[:20_000], rng) + plain[20_000:], 1)
        (tmp_path / "x.tar.gz").write_bytes(data if is_inside else mutate(packed_sweep, rng))
        return tmp_path / "x.tar.gz"

    law(120, make, lambda file: unpack(file, tmp_path / "new"))


def test_a_damaged_ledger(law, made_sweep, tmp_path):
    content = (made_sweep / FILE).read_bytes()

    def make(rng):
        (tmp_path / FILE).write_bytes(mutate(content, rng))
        return tmp_path

    law(80, make, records_in)


def test_a_damaged_journal(law, tmp_path):
    ledger = Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind="journal")
    for number in range(2):
        ledger.add({"pruning.target_sparsity": 0.5}, LEAVES)
        ledger.start(number)
        ledger.finish(number, [make_outcome()])
    ledger.close()
    lines = (tmp_path / JOURNAL).read_text().splitlines()

    def make(rng):
        changed = list(lines)
        at = rng.randrange(len(lines))
        if rng.random() < 0.6:
            changed[at] = json.dumps(mutate_value(json.loads(lines[at]), rng))
        else:
            changed[at] = mutate(lines[at].encode(), rng).decode("latin-1")
        text = "\n".join(changed) + "\n"
        (tmp_path / JOURNAL).write_bytes(text.encode("utf-8", "replace"))
        return tmp_path

    law(120, make, records_in)


def test_a_damaged_checkpoint_of_a_trial(law, tmp_path):
    content = save({"model": TENSORS, "step": 3, "names": ["a"], "rng": torch.arange(5)})
    folder = tmp_path / "checkpoints" / "000000003"
    folder.mkdir(parents=True)

    def make(rng):
        data = mutate(content, rng)
        (folder / "state.pt").write_bytes(data)
        (folder / "sha256").write_text(hashlib.sha256(data).hexdigest())
        return folder.parent

    law(100, make, checkpoint.load_newest)


@pytest.fixture(scope="module")
def saved_bundle(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "m"
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(folder, model, tokenizer, {"wer": 0.5, "outcome": {"wer": 0.5}})
    return folder


def test_a_damaged_bundle_whose_checksums_hold(law, saved_bundle, tmp_path):
    folder = Path(shutil.copytree(saved_bundle, tmp_path / "m"))
    whole = {name: (folder / name).read_bytes() for name in bundle.FILES}

    def make(rng):
        files = dict(whole)
        name = rng.choice(list(files))
        if name.endswith(".json"):
            files[name] = json.dumps(mutate_value(json.loads(files[name]), rng)).encode()
        else:
            begin = files[name][:4000]  # a header; other weights are weights
            files[name] = mutate(begin, rng) + files[name][4000:]
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in (files | {"checksums.json": json.dumps(sums).encode()}).items():
            (folder / name).write_bytes(data)
        return folder

    law(150, make, bundle.load)


def test_a_damaged_table_of_latencies(law, tmp_path):
    grid = {"units": [1, 4], "width": [8, 16], "ms": [[0.1, 0.2], [0.2, 0.4]]}
    table = {"utterance_seconds": 10.0, "device": "cpu", "threads": 1, "parts": {"heads": grid}}

    def make(rng):
        text = json.dumps(mutate_value(table, rng)).encode()
        (tmp_path / "t.json").write_bytes(mutate(text, rng) if rng.random() < 0.2 else text)
        return tmp_path / "t.json"

    law(100, make, LatencyTable.load)


def test_damaged_features(law, tokenizer, tmp_path):
    store = tmp_path / "dev"
    store.mkdir()
    arrays = {"begins": np.array([0, 1, 2]), "token_begins": np.array([0, 1, 2])}
    arrays |= {"tokens": np.array([1, 2], dtype=np.int32), "seconds": np.array([1.0, 1.0])}
    np.savez(store / "arrays.npz", **arrays)
    index = {"dtype": "float32", "left_out": {}, "ids": ["a", "b"], "texts": ["x", "y"]}
    prepared = {"stores": dict.fromkeys(("train", "dev", "test"), "dev"), "digest": "d"}
    prepared |= {"corpus": {"name": "demo"}, "heard": []}
    files = {
        "dev/index.json": json.dumps(index).encode(),
        "dev/arrays.npz": (store / "arrays.npz").read_bytes(),
        "dev/features.bin": bytes(2 * 80 * 4),
        "prepared.json": json.dumps(prepared).encode(),
        "tokenizer.model": tokenizer.model,
    }

    def make(rng):
        changed = dict(files)
        name = rng.choice(list(files))
        if name.endswith(".json") and rng.random() < 0.7:
            changed[name] = json.dumps(mutate_value(json.loads(files[name]), rng)).encode()
        else:
            changed[name] = mutate(files[name], rng)
        for name_of_file, data in changed.items():
            (tmp_path / name_of_file).write_bytes(data)
        return tmp_path

    def read(folder):
        speech_lineage(folder)
        FeatureStore.open(folder / "dev")
        open_speech(folder)

    law(120, make, read)


def test_damaged_memories_of_other_sweeps(law, tmp_path):
    outcome = {f: getattr(make_outcome(), f) for f in make_outcome().__dataclass_fields__}
    table = [{"params": {"pruning.target_sparsity": 0.5}, "outcome": outcome}]

    def make(rng):
        text = json.dumps(mutate_value(table, rng)).encode()
        data = mutate(text, rng) if rng.random() < 0.3 else text
        (tmp_path / "before.json").write_bytes(data)
        return tmp_path

    law(80, make, warm_start_records)


def test_a_damaged_database_of_mlflow(law, tmp_path):
    import sqlite3  # noqa: PLC0415

    database = sqlite3.connect(tmp_path / "whole.db")
    database.executescript(
        "CREATE TABLE experiments (experiment_id, artifact_location);"
        "CREATE TABLE runs (artifact_uri); CREATE TABLE webhooks (url);"
        "INSERT INTO experiments VALUES (1, 'file:///a/mlartifacts');"
        "INSERT INTO runs VALUES ('file:///a/mlartifacts/x')"
    )
    database.close()
    content = (tmp_path / "whole.db").read_bytes()

    def make(rng):
        (tmp_path / "mlflow.db").write_bytes(mutate(content, rng))
        return tmp_path / "mlflow.db"

    law(60, make, lambda path: check_tracking_database(path, path))
