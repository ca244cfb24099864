import shutil

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment

from core.config.trial import CorpusConfig
from core.data.audio import read_cut
from core.data.audio_decoding import CorpusError
from core.data.corpus import open_corpus
from core.data.sources.lhotse_manifests import describe_split, load_split, split_names
from core.data.tokenizer import transcript

# lhotse's reader of Shar leaves its archives for the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tar'>:ResourceWarning")


def as_shar(cuts, root):
    (root / "dev").mkdir()
    cuts.to_shar(root / "dev", fields={"recording": "flac"}, shard_size=4)


def as_cuts(cuts, root):
    cuts.to_file(root / "house_cuts_dev.jsonl.gz")


def as_bare_cuts(cuts, root):
    cuts.to_file(root / "dev.jsonl")


def as_recordings(cuts, root):
    recordings, supervisions, _ = cuts.decompose()
    recordings.to_file(root / "house_recordings_dev.jsonl.gz")
    supervisions.to_file(root / "house_supervisions_dev.jsonl.gz")


FORMS = [as_shar, as_cuts, as_bare_cuts, as_recordings]


@pytest.mark.parametrize("write", FORMS)
def test_every_form_gives_the_utterances_that_went_in(write, demo_corpus, tmp_path):
    write(demo_corpus.dev, tmp_path)

    cuts = list(load_split(tmp_path, "dev"))

    assert split_names(tmp_path) == ["dev"]
    assert list(map(transcript, cuts)) == list(map(transcript, demo_corpus.dev))
    assert list(map(transcript, describe_split(tmp_path, "dev"))) == list(map(transcript, cuts))
    for cut, original in zip(cuts, demo_corpus.dev, strict=True):
        torch.testing.assert_close(read_cut(cut), read_cut(original), atol=0, rtol=0)


def test_a_recording_with_several_utterances_is_cut_into_them(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(16000), 16000)
    whole = Recording.from_file(tmp_path / "long.flac").to_cut()
    whole.supervisions = [
        SupervisionSegment(id="a", recording_id="long", start=0.0, duration=0.5, text="go on"),
        SupervisionSegment(id="b", recording_id="long", start=0.6, duration=0.4, text="stop"),
    ]
    CutSet.from_cuts([whole]).to_file(tmp_path / "dev.jsonl")

    cuts = list(load_split(tmp_path, "dev"))

    assert [(transcript(cut), cut.duration) for cut in cuts] == [("go on", 0.5), ("stop", 0.4)]
    assert [len(read_cut(cut)) for cut in cuts] == [8000, 6400]


def test_relative_audio_is_looked_for_beside_the_manifest(demo_corpus, tmp_path):
    source = demo_corpus.dev[0].recording.sources[0].source
    (tmp_path / "audio").mkdir()
    shutil.copy(source, tmp_path / "audio" / "one.flac")
    manifest = tmp_path / "dev.jsonl"
    CutSet.from_cuts([demo_corpus.dev[0]]).to_file(manifest)
    manifest.write_text(manifest.read_text().replace(source, "audio/one.flac"))

    [cut] = load_split(tmp_path, "dev")

    torch.testing.assert_close(read_cut(cut), read_cut(demo_corpus.dev[0]), atol=0, rtol=0)


@pytest.mark.parametrize("write", [as_shar, as_cuts])
def test_manifests_open_as_a_corpus(write, demo_corpus, tmp_path):
    write(demo_corpus.dev, tmp_path)
    demo_corpus.train.to_file(tmp_path / "train.jsonl.gz")

    corpus = open_corpus(CorpusConfig(name=str(tmp_path)), tmp_path)

    assert len(list(corpus.train)) == len(demo_corpus.train)
    assert len(list(corpus.dev)) == len(demo_corpus.dev)
    assert list(corpus.test) == []


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "dev.jsonl").write_text('{"no": "cut"}\n')

    with pytest.raises(CorpusError, match=r"dev.jsonl`, line 1, must be a cut .* but has `no` in"):
        load_split(tmp_path, "dev")


def test_recordings_without_supervisions_are_named(demo_corpus, tmp_path):
    as_recordings(demo_corpus.dev, tmp_path)
    (tmp_path / "house_supervisions_dev.jsonl.gz").unlink()

    with pytest.raises(CorpusError, match=r"must have `.*supervisions_dev.jsonl.gz` beside it"):
        load_split(tmp_path, "dev")
