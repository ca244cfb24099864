"""The features of one split, computed once on disk and read by all trials of a sweep.

A store is a folder: `features.bin` holds all utterances' frames end to end, `arrays.npz` where
each begins and what its tokens are, `index.json` names, words and what was left out. Its own name
changes with whatever its content depends on.

Shapes: T frames, M mel bins, U tokens.
"""

import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core.config.trial import CorpusConfig
from core.data.audio import (
    read_cut,
    resample_to_16khz,
)
from core.data.audio_decoding import (
    CorpusError,
)
from core.data.corpus import Corpus, SplitName
from core.data.tokenizer import Tokenizer, transcript
from core.features import spec
from core.features.kaldi import FEATURE_VERSION, SAMPLE_RATE_HZ
from core.features.nemo import compute_features
from core.features.spec import NATIVE, FrontendSpec
from core.files import atomic_folder
from core.outside_files import read_arrays, read_json

FORMAT = 2
"""The version of `index.json` that is written; 1, which has no `format`, is read as well."""
_SECONDS_AT_ONCE = 120
_ARRAYS = ("begins", "token_begins", "tokens", "seconds")
_TOO_SHORT = "shorter than the front end's receptive field"
_TOO_DENSE = "shorter than their tokens"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One utterance."""

    features: Float[Tensor, "frames mels"]
    tokens: Int[Tensor, " tokens"]
    seconds: float
    id: str
    text: str


class FeatureStore:
    """Utterances by number, read straight from the file that all processes share."""

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / "index.json")
        index = upgrade_format_1(index) if "format" not in index else index
        arrays = read_arrays(folder / "arrays.npz", _ARRAYS)
        self._begins, self._token_begins = arrays["begins"], arrays["token_begins"]
        self._tokens, self.seconds = arrays["tokens"], arrays["seconds"]
        self.folder = folder
        self.ids: list[str] = index["ids"]
        self.texts: list[str] = index["texts"]
        self.left_out: dict[str, int] = index["left_out"]
        plain = index.get("frontend")
        self.frontend_spec = None if plain is None else FrontendSpec.from_plain(plain)
        """The kind of the features; None in stores that were written before it was recorded."""
        self.num_frames = np.diff(self._begins)
        mels = (self.frontend_spec or NATIVE).mels
        size = (int(self._begins[-1]), mels)
        self._features = _map(folder / "features.bin", index["dtype"], size)

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Open a store.

        Raises:
            CorpusError: if it is missing, damaged or cut short.
        """
        try:
            return cls(folder)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CorpusError(
                f"`{folder}` must be a feature store, but is missing or damaged ({reason});"
                " delete it, and the features are computed again."
            ) from error

    @classmethod
    def build(
        cls,
        cuts: Iterable[Cut],
        tokenizer: Tokenizer,
        folder: Path,
        *,
        is_training: bool,
        speeds: Iterable[float] = (1.0,),
        device: torch.device | str = "cpu",
        frontend_spec: FrontendSpec = NATIVE,
    ) -> "FeatureStore":
        """Computes a store of the features that a model reads, replacing what was at `folder`.

        Training speech is kept at every speed, in half precision, without utterances that CTC
        cannot learn from. Speech to be judged on is kept whole and exact: it must sound to the
        recognizer as it will in use, and no word of it may be lost.

        Args:
            cuts: utterances.
            tokenizer: encodes their transcripts.
            folder: of the store.
            is_training: whether it is speech to train on.
            speeds: of the copies, 1.0 for the speech as it is; only for training.
            device: computes the features.
            frontend_spec: which features.

        Raises:
            CorpusError: naming a file that cannot be decoded, or if nothing is left to train on.
        """
        writer = _Writer(tokenizer=tokenizer, is_training=is_training, frontend_spec=frontend_spec)
        with atomic_folder(folder) as tmp_path:
            with (tmp_path / "features.bin").open("wb") as file:
                for group in _groups(cuts, tuple(speeds) if is_training else (1.0,)):
                    writer.write(group, file, torch.device(device))
            writer.finish(tmp_path)
        return cls.open(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, i: int) -> Item:
        # `astype` copies, which also takes the data out of read-only mapped memory: torch warns of
        # tensors on such memory.
        features = self._features[self._begins[i] : self._begins[i + 1]]
        tokens = self._tokens[self._token_begins[i] : self._token_begins[i + 1]]
        return Item(
            features=torch.from_numpy(features.astype(np.float32)),
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            seconds=float(self.seconds[i]),
            id=self.ids[i],
            text=self.texts[i],
        )

    @property
    def longest_seconds(self) -> float:
        """Seconds of the longest utterance."""
        return float(self.seconds.max(initial=0.0))

    def token_counts(self, vocabulary: int) -> Int[Tensor, " vocabulary"]:
        """Counts each token over all utterances."""
        return torch.from_numpy(np.bincount(self._tokens, minlength=vocabulary))

    def statistics(self) -> tuple[Float[Tensor, " mels"], Float[Tensor, " mels"]]:
        """Mean and standard deviation of each mel bin over all frames."""
        total, squares = np.zeros((2, self._features.shape[1]))
        # 65,536 frames at a time are 42 MB. Sums in double precision: the variance is a difference
        # of two large means, of squares and of values.
        for begin in range(0, len(self._features), 1 << 16):
            part = self._features[begin : begin + (1 << 16)].astype(np.float64)
            total += part.sum(0)
            squares += np.square(part).sum(0)
        mean = total / max(len(self._features), 1)
        variance = squares / max(len(self._features), 1) - np.square(mean)
        std = np.sqrt(variance.clip(1e-10))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def upgrade_format_1(index: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of an `index.json` with today's keys, from one of format 1."""
    upgraded = dict(index)
    if "hearing" in upgraded:
        upgraded["frontend"] = spec.upgrade_format_1(upgraded.pop("hearing"))
    return upgraded


def open_or_build(
    corpus: Corpus,
    split: SplitName,
    tokenizer: Tokenizer,
    config: CorpusConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    frontend_spec: FrontendSpec = NATIVE,
) -> FeatureStore:
    """Open a split's features, computing them where they are absent, damaged or others.

    Args:
        corpus: has the split.
        split: train, dev or test.
        tokenizer: encodes its transcripts.
        config: has the speeds of training speech.
        folder: holds the stores; each is named by a digest of all that it depends on.
        device: computes the features.
        frontend_spec: which features.
    """
    path = folder / f"{split}-{_digest(corpus, split, tokenizer, config, frontend_spec)[:16]}"
    try:
        return FeatureStore.open(path)
    except CorpusError as error:
        if path.exists():
            log.warning("%s They are computed again now.", error)
    cuts = getattr(corpus, split)
    return FeatureStore.build(
        cuts,
        tokenizer,
        path,
        is_training=split == "train",
        speeds=config.speeds,
        device=device,
        frontend_spec=frontend_spec,
    )


def _digest(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    config: CorpusConfig,
    frontend_spec: FrontendSpec,
) -> str:
    parts: list[object] = [FEATURE_VERSION, corpus.digest, split, tokenizer.digest]
    # Only training speech has copies at other speeds and a largest length.
    if split == "train":
        parts += [config.speeds, config.max_seconds]
    # Left out for the features of our own models, whose stores are named without it.
    if frontend_spec != NATIVE:
        parts.append(frontend_spec.to_plain())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Utterance:
    id: str
    text: str
    waveform: Tensor


def _utterances(cuts: Iterable[Cut], speeds: tuple[float, ...]) -> Iterator[_Utterance]:
    for cut in cuts:
        waveform = read_cut(cut)
        for speed in speeds:
            name = cut.id if speed == 1.0 else f"{cut.id}@{speed:g}"
            samples = resample_to_16khz(waveform, SAMPLE_RATE_HZ, speed=speed)
            yield _Utterance(id=name, text=transcript(cut), waveform=samples)


def _groups(cuts: Iterable[Cut], speeds: tuple[float, ...]) -> Iterator[list[_Utterance]]:
    """Utterances in order, so many at once as the device may hold padded."""
    group: list[_Utterance] = []
    longest = 0
    for utterance in _utterances(cuts, speeds):
        longest = max(longest, len(utterance.waveform))
        # What counts is the longest times the number, as padded: 10, 20, 30 and 30 s are 120 s.
        if group and longest * (len(group) + 1) > _SECONDS_AT_ONCE * SAMPLE_RATE_HZ:
            yield group
            group, longest = [], len(utterance.waveform)
        group.append(utterance)
    if group:
        yield group


@dataclass(kw_only=True, slots=True)
class _Writer:
    """Gathers the index while frames go to the file."""

    tokenizer: Tokenizer
    is_training: bool
    frontend_spec: FrontendSpec
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    num_frames: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def dtype(self) -> str:
        # Half the disk and half the reading. Values near 16 are off by 0.004 at most.
        return "float16" if self.is_training else "float32"

    def write(self, group: list[_Utterance], file: BinaryIO, device: torch.device) -> None:
        waveforms = pad_sequence([u.waveform for u in group], batch_first=True)
        num_samples = torch.tensor([len(u.waveform) for u in group])
        ready = waveforms.to(device), num_samples.to(device)
        features, num_frames = compute_features(self.frontend_spec, *ready)
        stored = features.cpu().numpy().astype(self.dtype)
        for utterance, rows, length in zip(group, stored, num_frames.tolist(), strict=True):
            tokens = self.tokenizer.encode(utterance.text)
            # CTC aligns tokens with the frames that leave the front end: 15 of 64, not 64.
            num_outputs = self.frontend_spec.output_frames(length)
            reason = _why_not(num_outputs, tokens) if self.is_training else ""
            if reason:
                self.left_out[reason] += 1
                continue
            file.write(rows[:length].tobytes())
            self.ids.append(utterance.id)
            self.texts.append(utterance.text)
            self.seconds.append(len(utterance.waveform) / SAMPLE_RATE_HZ)
            self.num_frames.append(length)
            self.tokens.append(tokens)

    def finish(self, folder: Path) -> None:
        for reason, count in sorted(self.left_out.items()):
            log.warning("%d training utterances are %s and left out.", count, reason)
        if self.is_training and not self.ids:
            raise CorpusError(
                "Training must have an utterance that is as long as its tokens,"
                f" but all {self.left_out.total()} are too short instead."
            )
        np.savez(
            folder / "arrays.npz",
            # Lengths of 3 and 5 frames give [0, 3, 8]: the second utterance has rows 3 to 7.
            begins=np.cumsum([0, *self.num_frames], dtype=np.int64),
            token_begins=np.cumsum([0, *map(len, self.tokens)], dtype=np.int64),
            tokens=np.array([token for tokens in self.tokens for token in tokens], dtype=np.int32),
            seconds=np.array(self.seconds, dtype=np.float64),
        )
        index = {"format": FORMAT, "dtype": self.dtype, "left_out": dict(self.left_out)}
        index |= {"frontend": self.frontend_spec.to_plain()}
        index |= {"ids": self.ids, "texts": self.texts}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _why_not(num_outputs: int, tokens: list[int]) -> str:
    """Say why CTC has no path for these tokens over so many frames, if it has none."""
    if num_outputs == 0:
        return _TOO_SHORT
    # A blank must separate equal neighbors: tokens 5 5 7 need the 4 frames 5 _ 5 7.
    num_repeats = sum(a == b for a, b in itertools.pairwise(tokens))
    return _TOO_DENSE if num_outputs < len(tokens) + num_repeats else ""


def _map(file: Path, dtype: str, size: tuple[int, int]) -> np.ndarray:
    expected = math.prod(size) * np.dtype(dtype).itemsize
    num_bytes = file.stat().st_size
    if num_bytes != expected:
        raise ValueError(f"`{file.name}` must have {expected} bytes, but has {num_bytes}")
    # Memory of no bytes cannot be mapped.
    if expected == 0:
        return np.zeros(size, dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=size)
