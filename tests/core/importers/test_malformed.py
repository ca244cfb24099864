"""Malformed models, made by mutation: one clear line each, nothing run, nothing written."""

import io
import json
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.importers.load import import_model, read_model
from core.importers.nemo import CONFIG, WEIGHTS
from core.importers.safe_read import ImportingError, read_archive, read_checkpoint, read_yaml
from tests.support.malformed import check_refused, with_malformed_tensor

MODELS = Path(__file__).parents[4] / "shared/data/models"
ARCHIVE = MODELS / "fastconformer-8x.nemo"
needs_models = pytest.mark.skipif(not ARCHIVE.is_file(), reason="../shared/data/models is missing")
MUTATIONS = 500
ABSURD = ["-1", "0", "1e9", "99999999999", "[[[1]]]", "{}", "null", "'x'", ".nan", "true"]


@pytest.fixture(scope="module")
def files():
    return read_archive(ARCHIVE)


def save_tensors(tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def with_changed_tensor(files, rng):
    """One tensor gone, renamed, of another shape, of whole numbers, or not finite."""
    tensors = torch.load(io.BytesIO(files[WEIGHTS]), weights_only=True)
    needed = [n for n in tensors if not n.endswith(("num_batches_tracked", "window", "fb"))]
    changed = with_malformed_tensor(tensors, rng.choice(needed), rng)
    return files | {WEIGHTS: save_tensors(changed)}


def with_changed_setting(files, rng):
    """One size of the model absurd or of another kind."""
    sizes = ["d_model:", "n_heads:", "n_layers:", "conv_kernel_size:", "ff_expansion_factor:"]
    sizes += ["subsampling_conv_channels:", "subsampling_factor:", "num_classes:"]
    before = rng.choice(sizes)
    lines = files[CONFIG].decode().splitlines()
    index = next(i for i, line in enumerate(lines) if line.strip().startswith(before))
    indent = lines[index][: len(lines[index]) - len(lines[index].lstrip())]
    value = rng.choice([v for v in ABSURD if not lines[index].endswith(f" {v}")])
    lines[index] = f"{indent}{before} {value}"
    return files | {CONFIG: "\n".join(lines).encode()}


def with_cut_file(files, rng):
    """A file inside that ends early."""
    name = rng.choice([CONFIG, WEIGHTS, next(n for n in files if n.endswith(".model"))])
    content = files[name]
    # Settings cut in the part that other programs read are still whole for us.
    longest = len(content) // 4 if name == CONFIG else len(content) - 64
    return files | {name: content[: rng.randrange(longest)]}


def without_a_file(files, rng):
    name = rng.choice([CONFIG, WEIGHTS, next(n for n in files if n.endswith(".model"))])
    return {n: content for n, content in files.items() if n != name}


def with_noise(files, rng):
    """A file inside whose first bytes are noise."""
    name = rng.choice([CONFIG, WEIGHTS])
    return files | {name: rng.randbytes(200) + files[name][200:]}


KINDS = [with_changed_tensor, with_changed_setting, with_cut_file, without_a_file, with_noise]


@needs_models
@pytest.mark.slow
def test_every_mutated_archive_is_refused_in_one_line(files, tmp_path, repack):
    rng = random.Random(0)
    file = tmp_path / "model.nemo"
    for number in range(MUTATIONS):
        file = repack(file, KINDS[number % len(KINDS)](files, rng))
        check_refused(file, tmp_path)


@needs_models
@pytest.mark.slow
def test_every_archive_that_ends_early_is_refused(tmp_path):
    rng, whole = random.Random(1), ARCHIVE.read_bytes()
    for _ in range(60):
        (tmp_path / "model.nemo").write_bytes(whole[: rng.randrange(len(whole) * 3 // 4)])
        check_refused(tmp_path / "model.nemo", tmp_path)


class Villain:
    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_a_pickle_with_code_runs_none_of_it(tmp_path):
    Villain.target = str(tmp_path / "was here")
    packed = io.BytesIO()
    torch.save({"encoder.weight": Villain()}, packed)

    for content in (packed.getvalue(), pickle.dumps(Villain())):
        with pytest.raises(ImportingError, match=r"`w` must be tensors by name"):
            read_checkpoint(content, "w")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_path_that_climbs_out_of_an_archive_is_refused(name, tmp_path):
    with tarfile.open(tmp_path / "a.nemo", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())

    check_refused(tmp_path / "a.nemo", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_an_archive_is_refused(kind, tmp_path):
    member = tarfile.TarInfo(CONFIG)
    member.type, member.linkname = kind, "/etc/hostname"
    with tarfile.open(tmp_path / "a.nemo", "w") as archive:
        archive.addfile(member)

    check_refused(tmp_path / "a.nemo", tmp_path)


def test_a_file_that_claims_an_absurd_size_is_refused_before_it_is_read(tmp_path):
    member = tarfile.TarInfo(WEIGHTS)
    member.size = 1 << 45
    (tmp_path / "a.nemo").write_bytes(member.tobuf() + bytes(1024))

    with pytest.raises(ImportingError, match=r"at most 1000 files of 20 times its own size"):
        read_model(tmp_path / "a.nemo")


def test_a_checkpoint_that_would_grow_when_unpacked_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as records:
        records.writestr("archive/data.pkl", bytes(10_000_000))

    with pytest.raises(ImportingError, match=r"`w` must have at most \d+ bytes, but has 10000000"):
        read_checkpoint(file.getvalue(), "w")


@pytest.mark.parametrize(
    "content",
    [b"!!python/object/apply:os.getcwd []", b"- 1", b"{", b"\xff\xfe", b"a: &a [*a]\n- 3"],
)
def test_yaml_that_is_no_plain_table_is_refused(content):
    with pytest.raises(ImportingError, match=r"`c` must be"):
        read_yaml(content, "c")


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"{", b"[" * 100_000, b'{"model_type": 3}', b"\xff", b"{}"]
)
def test_a_folder_whose_config_says_nothing_is_refused(config, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(config)

    check_refused(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        "{}",
        '{"model": {"type": "WordPiece", "vocab": {}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 9}, "merges": [], "unk_token": "a"}}',
        '{"model": {"type": "Unigram", "vocab": [["a", "b"]], "unk_id": 0}}',
        '{"model": {"type": "Unigram", "vocab": [["a", 0], ["a", 1]], "unk_id": 0}}',
    ],
)
def test_a_folder_of_damaged_tokens_or_weights_is_refused(tokens, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "parakeet_ctc", "vocab_size": 3, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"ctc_head.weight": torch.zeros(3, 4, 1)}, folder / "model.safetensors")
    if tokens is not None:
        (folder / "tokenizer.json").write_text(tokens)

    check_refused(folder, tmp_path)


@pytest.mark.parametrize("name", ["no such file", "../..", "a/b/c", "\0"])
def test_what_is_nowhere_is_refused(name, tmp_path):
    with pytest.raises((ImportingError, ValueError)):
        import_model(name, tmp_path / "out")
