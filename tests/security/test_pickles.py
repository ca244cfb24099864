"""What would come to life when it is read, stays dead: pickles, tags of YAML, modules of models."""

import base64
import hashlib
import io
import json
import os
import pickle
import shutil
import sqlite3
import struct
import tarfile
import zipfile
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from core import bundle
from core.bundle import BundleError
from core.config.base import ConfigError
from core.config.trial import CorpusConfig
from core.data.audio_decoding import CorpusError
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.digests import speech_lineage
from core.evaluation.ngram import LmError, _read_words
from core.importers.safe_read import ImportingError, read_checkpoint, read_safetensors, read_yaml
from core.pruning.latency_table import LatencyTable
from core.testing import SHAPE, small_model
from core.training import checkpoint
from sweep.ledger.fast_read import records_in
from sweep.ledger.files import FILE, JOURNAL, LedgerError
from sweep.ledger.ledger import Ledger


def save(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


HOW_SAVED = [{}, {"_use_new_zipfile_serialization": False}]


@pytest.mark.parametrize("how", HOW_SAVED, ids=["zip", "legacy"])
def test_a_trial_s_checkpoint_runs_nothing(tmp_path, payload, mark, guard_effects, how):
    folder = tmp_path / "checkpoints" / "000000001"
    folder.mkdir(parents=True)
    content = save({"step": payload}, **how)
    (folder / "state.pt").write_bytes(content)
    (folder / "sha256").write_text(hashlib.sha256(content).hexdigest())

    with guard_effects(tmp_path), pytest.raises(checkpoint.CheckpointError):
        checkpoint.load_newest(tmp_path / "checkpoints")
    assert not mark.exists()


@pytest.mark.parametrize(
    "link", ["/dev/zero", "../../../other/state.pt", "pipe"], ids=["device", "elsewhere", "pipe"]
)
def test_a_checkpoint_that_is_a_link_to_no_file_is_passed_over(tmp_path, guard_effects, link):
    folder = tmp_path / "checkpoints" / "000000001"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "state.pt").symlink_to(link)
    (folder / "sha256").write_text("0" * 64)

    with guard_effects(tmp_path), pytest.raises(checkpoint.CheckpointError):
        checkpoint.load_newest(tmp_path / "checkpoints")


@pytest.mark.parametrize("how", HOW_SAVED, ids=["zip", "legacy"])
@pytest.mark.parametrize("position", ["value", "table", "name"])
def test_the_weights_of_a_published_model_run_nothing(
    tmp_path, payload, mark, guard_effects, how, position
):
    value = {"value": {"w": payload}, "table": {"state_dict": payload}, "name": [payload]}[position]

    with guard_effects(tmp_path), pytest.raises(ImportingError, match=r"`w.ckpt` must be tensors"):
        read_checkpoint(save(value, **how), "w.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model_weights.ckpt"])
@pytest.mark.parametrize("kind", ["parakeet_ctc", "torchaudio_conformer"])
def test_a_folder_with_a_pickle_in_it_runs_nothing(
    tmp_path, payload, mark, guard_effects, run_command, name, kind
):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / name).write_bytes(pickle.dumps(payload))

    with guard_effects(tmp_path):
        code, out, err = run_command("import", folder, tmp_path / "out")

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:subprocess.check_output [['touch', '{}']]",
    "!!python/object/new:pathlib.Path ['{}']",
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    "!!python/object:pathlib.PosixPath {{}}",
]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_the_settings_of_a_model_makes_no_object(
    tmp_path, mark, guard_effects, run_command, tag
):
    content = f"encoder: {tag.format(mark)}\n".encode()
    with guard_effects(tmp_path), pytest.raises(ImportingError, match="must be a table of YAML"):
        read_yaml(content, "model_config.yaml")

    with tarfile.open(tmp_path / "x.nemo", "w") as archive:
        for name, data in (("model_config.yaml", content), ("model_weights.ckpt", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with guard_effects(tmp_path):
        code, _, _ = run_command("import", tmp_path / "x.nemo", tmp_path / "out")
    assert code == 2
    assert not mark.exists()


def test_aliases_of_aliases_do_not_fill_the_memory():
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]

    table = read_yaml("\n".join(lines).encode(), "x.yaml")
    assert table["a59"][0] is table["a58"]


# ---- features ----


@pytest.fixture
def store(tmp_path):
    """A store of features of two utterances."""
    folder = tmp_path / "store"
    folder.mkdir()
    arrays = {
        "begins": np.array([0, 1, 2]),
        "token_begins": np.array([0, 1, 2]),
        "tokens": np.array([1, 2], dtype=np.int32),
        "seconds": np.array([1.0, 1.0]),
    }
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "features.bin").write_bytes(bytes(2 * 80 * 4))
    index = {"dtype": "float32", "left_out": {}, "ids": ["a", "b"], "texts": ["x", "y"]}
    (folder / "index.json").write_text(json.dumps(index))
    assert len(FeatureStore.open(folder)) == 2
    return folder, arrays


def test_arrays_of_objects_are_not_unpickled(store, payload, mark, guard_effects, tmp_path):
    folder, arrays = store
    np.savez(folder / "arrays.npz", **arrays | {"seconds": np.array([payload, payload])})

    with guard_effects(tmp_path):
        with pytest.raises(CorpusError, match="must be a feature store"):
            FeatureStore.open(folder)
        (tmp_path / "prepared.json").write_text(
            json.dumps({"stores": {"dev": "store"}, "corpus": {"name": "x"}, "digest": "d"})
        )
        assert speech_lineage(tmp_path) is None
    assert not mark.exists()


def test_a_plain_pickle_is_no_array(store, payload, mark, guard_effects, tmp_path):
    (store[0] / "arrays.npz").write_bytes(pickle.dumps(payload))

    with guard_effects(tmp_path), pytest.raises(CorpusError, match="must be a feature store"):
        FeatureStore.open(store[0])
    assert not mark.exists()


@pytest.mark.parametrize("count", [10**9, 10**15, 2**62])
def test_an_array_that_claims_petabytes_is_refused(store, count):
    folder, arrays = store
    np.savez(folder / "arrays.npz", **arrays)
    claims = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(claims, header)
    with zipfile.ZipFile(folder / "arrays.npz") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(folder / "arrays.npz", "w") as changed:
        for name, data in (parts | {"seconds.npy": claims.getvalue() + bytes(16)}).items():
            changed.writestr(name, data)

    with pytest.raises(CorpusError, match="must be a feature store"):
        FeatureStore.open(folder)


def test_packed_arrays_are_refused_as_nobody_writes_them(store):
    folder, _ = store
    np.savez_compressed(folder / "arrays.npz", begins=np.zeros(10**7))

    with pytest.raises(CorpusError, match="packed"):
        FeatureStore.open(folder)


def test_tensors_that_claim_petabytes_are_refused(tmp_path):
    header = {"w": {"dtype": "F32", "shape": [2**40, 2**10], "data_offsets": [0, 2**52]}}
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    with pytest.raises(ImportingError, match=r"`w.safetensors` must be"):
        read_safetensors(tmp_path / "w.safetensors")

    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(ImportingError, match=r"`w.safetensors` must be"):
        read_safetensors(tmp_path / "w.safetensors")


# ---- bundles ----


@pytest.fixture(scope="module")
def saved_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    config = CorpusConfig(tokens="word", vocabulary=20)
    tokenizer = Tokenizer.train(["one two", "two three"], config, folder)
    model = small_model(shape=replace(SHAPE, vocabulary=tokenizer.size))
    bundle.save(folder / "model", model, tokenizer, {"wer": 0.5})
    return folder / "model"


@pytest.mark.parametrize("name", ["checksums.json", *bundle.FILES])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_part_of_a_bundle_that_never_ends_is_refused_at_once(
    saved_bundle, tmp_path, guard_effects, name, kind
):
    folder = shutil.copytree(saved_bundle, tmp_path / "m")
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()

    with guard_effects(tmp_path), pytest.raises(BundleError, match=r"checksums.json is|is missing"):
        bundle.load(folder)


def test_a_huge_table_of_a_bundle_is_not_read(saved_bundle, tmp_path):
    folder = shutil.copytree(saved_bundle, tmp_path / "m")
    with (folder / "checksums.json").open("wb") as file:
        file.truncate(2**40)  # takes no place on the disk

    with pytest.raises(BundleError, match="checksums"):
        bundle.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04cos\nsystem\n(S'touch mark'\ntR.",
        b"\x0a\xff\xff\xff\xff\x7f" + b"x" * 10,  # a piece of 34 GB
        b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\x12\x04\x20\xff\xff\xff\x7f" * 10,
    ],
)
def test_a_tokenizer_of_absurd_sizes_is_refused(tmp_path, guard_effects, content):
    (tmp_path / "tokenizer.model").write_bytes(content)

    with guard_effects(tmp_path):
        with pytest.raises(CorpusError, match="must be a SentencePiece model"):
            Tokenizer.load(tmp_path)
        with pytest.raises(CorpusError, match="must be a SentencePiece model"):
            Tokenizer.with_blank(content)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_table_of_latencies_that_never_ends_is_refused(tmp_path, make):
    make(tmp_path / "table.json")

    with pytest.raises(ConfigError, match="must be a file of JSON"):
        LatencyTable.load(tmp_path / "table.json")


def test_kenlm_is_never_given_its_own_binary_format(tmp_path):
    magic = b"mmap lm http://kheafield.com/code format version 5\n"
    text = b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1 <unk>\n\n\\end\\\n"
    (tmp_path / "lm.arpa").write_bytes(magic + text)

    with pytest.raises(LmError, match="first line"):
        _read_words(tmp_path / "lm.arpa")


# ---- ledgers ----


def test_a_pickle_in_a_ledger_is_damage(sweep, payload, mark, guard_effects, tmp_path):
    with closing(sqlite3.connect(sweep / FILE)) as database, database:
        text = base64.b64encode(pickle.dumps(payload)).decode()
        database.execute("UPDATE trial_user_attributes SET value_json = ?", (text,))

    with guard_effects(tmp_path), pytest.raises(LedgerError, match="must be an intact ledger"):
        records_in(sweep)
    assert not mark.exists()


@pytest.mark.parametrize("is_last", [True, False])
def test_a_pickle_in_a_journal_is_damage(tmp_path, payload, mark, guard_effects, is_last):
    Ledger.open_or_create(tmp_path, ["wer", "gflops"], kind="journal").close()
    content = (tmp_path / JOURNAL).read_bytes()
    pickled = pickle.dumps(payload).replace(b"\n", b"") + b"\n"
    (tmp_path / JOURNAL).write_bytes(content + pickled if is_last else pickled + content)

    with guard_effects(tmp_path), pytest.raises(LedgerError, match="must be an intact ledger"):
        records_in(tmp_path)
    assert not mark.exists()


SCHEMAS = {
    "view": "ALTER TABLE trials RENAME TO t; CREATE VIEW trials AS WITH RECURSIVE"
    " n(trial_id) AS (SELECT 1 UNION ALL SELECT trial_id + 1 FROM n) SELECT * FROM n",
    # Even to count its rows would never end.
    "view of studies": "ALTER TABLE studies RENAME TO s; CREATE VIEW studies AS WITH RECURSIVE"
    " n(study_name) AS (SELECT '' UNION ALL SELECT study_name || 'x' FROM n) SELECT * FROM n",
    "trigger": "CREATE TRIGGER x AFTER UPDATE ON trials BEGIN DELETE FROM studies; END",
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_ledger_that_runs_something_when_it_is_used_is_damage(sweep, kind):
    with closing(sqlite3.connect(sweep / FILE)) as database:
        database.executescript(SCHEMAS[kind])

    with pytest.raises(LedgerError, match=f"has the {kind.split()[0]}"):
        records_in(sweep)
    with pytest.raises(LedgerError, match=f"has the {kind.split()[0]}"):
        Ledger.open(sweep)


@pytest.mark.parametrize("folder", ["..", "../../../etc", "/etc", "a/b", "", ".", "x\0y", ".ssh"])
def test_an_outcome_s_model_lies_in_its_trial(sweep, run_command, folder):
    with closing(sqlite3.connect(sweep / FILE)) as database, database:
        query = "SELECT value_json FROM trial_user_attributes WHERE key = 'outcomes'"
        ((text,),) = database.execute(query).fetchall()
        changed = json.dumps([{**json.loads(text)[0], "model": folder}])
        database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'outcomes'", (changed,)
        )

    code, out, err = run_command("export", sweep, "0", "--to", "bundle", "--out", sweep / "out")
    assert (code, out) == (2, "")
    assert "must be an intact ledger" in err
    assert "`model`" in err
