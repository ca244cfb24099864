"""A corpus: a name or a path becomes checked utterances in three splits."""

import fnmatch
import functools
import hashlib
import logging
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lhotse import CutSet
from lhotse.cut import Cut

from core.config.trial import NO_SPEECH, CorpusConfig
from core.data.audio import check_rate, source_name
from core.data.audio_decoding import CorpusError
from core.data.manifests.records import recordings_in
from core.data.manifests.sources import FileCheck
from core.data.sources import audio_folder, lhotse_manifests, librispeech
from core.data.sources.lhotse_manifests import Words
from core.data.text_case import change_case
from core.data.tokenizer import transcript
from core.data.utterance_ids import NameCheck, SharedSpeech, fingerprint

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
FEWEST_TO_TRAIN_ON = 2  # with one there is no order to shuffle and nothing to generalise from

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Utterances with their transcripts, one a cut."""

    name: str
    train: CutSet
    """Only utterances of at most `corpus.max_seconds`."""
    dev: CutSet
    test: CutSet
    """Empty where no split matches `corpus.test`."""
    digest: str
    """Changes with any utterance's name, length, words or audio; not with where it lies."""
    wordless: frozenset[SplitName] = frozenset()
    """Splits whose words only a teacher can say; core/data/pseudo_labels.py asks it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    root: Path
    splits: list[str]
    load_split: Callable[[Path, str], CutSet]
    load_wordless: Callable[[Path, str], CutSet]
    """The same utterances, perhaps by other names, and nothing of what is said in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The splits that one of the three globs chose, read and checked."""

    cuts: CutSet
    num_cuts: int
    num_long: int
    digest: str
    is_wordless: bool


def open_corpus(config: CorpusConfig, folder: Path) -> Corpus:
    """Find a corpus and check all of it; `demo` is spoken into `folder` if it is not yet there.

    Every header is looked at: this is for the one who prepares features, not for each trial.

    Raises:
        CorpusError: in one line naming the file or split that cannot be used.
    """
    layout = _find_layout(config, folder)
    chosen = _choose(layout, config)
    shared = SharedSpeech()
    parts = [
        _open(layout, names, config, words, shared, is_training=split == "train")
        for split, names, words in zip(SPLITS, chosen, _words_of(config), strict=True)
    ]
    train, dev, test = parts
    if shared.count:
        log.warning(
            "%d utterances of the dev and test splits are trained on, such as `%s`; their word"
            " error rate says little.",
            *(shared.count, shared.first),
        )
    if train.num_long:
        log.warning(
            "%d of %d training utterances are longer than `corpus.max_seconds` = %g and left out.",
            *(train.num_long, train.num_cuts, config.max_seconds),
        )
    num_kept = train.num_cuts - train.num_long
    if num_kept < FEWEST_TO_TRAIN_ON:
        raise CorpusError(
            f"The splits {', '.join(chosen[0])} of `{layout.root}` must have at least"
            f" {FEWEST_TO_TRAIN_ON} utterances of at most {config.max_seconds:g} s to train on,"
            f" but have {num_kept} instead."
        )
    return Corpus(
        name=config.name,
        train=_filter(train.cuts, functools.partial(_is_short, config.max_seconds)),
        dev=dev.cuts,
        test=test.cuts,
        digest=hashlib.sha256(f"{train.digest}{dev.digest}{test.digest}".encode()).hexdigest(),
        wordless=frozenset(
            split for split, part in zip(SPLITS, parts, strict=True) if part.is_wordless
        ),
    )


def _words_of(config: CorpusConfig) -> tuple[Words, Words, Words]:
    if config.labels == "teacher":
        return ("unread", "optional", "optional")
    return ("needed", "needed", "needed")


def with_memory(
    new: Corpus, old: Corpus, *, share: float, seed: int, balance: float = 0.0
) -> Corpus:
    """New speech, with a share of the old one's training speech among its own.

    Whether an utterance is among them depends on its name and the seed alone, so that a larger
    share holds a smaller one's. What is among them is there as often as makes at least `balance`
    old utterances a new one: little memory, seldom trained on, is forgotten all the same.

    Args:
        new: all of it is taken; its dev and test splits stay.
        old: only its training speech is read.
        share: of the old utterances, in (0, 1].
        seed: chooses them.
        balance: old utterances for each new one, at least; 0 takes each once.

    Raises:
        CorpusError: if the share leaves no utterance.
    """
    remembered = list(_filter(old.train, functools.partial(_is_remembered, share, seed)))
    if not remembered:
        raise CorpusError(
            f"`memory_share` must leave training utterances of `{old.name}`, but {share:g} of"
            " them are none."
        )
    count = sum(1 for _ in new.train)
    # 1000 new utterances, 100 of memory and a balance of 0.5: each of the 100 is there 5 times.
    times = max(1, math.ceil(balance * count / len(remembered)))
    memory = CutSet.from_cuts(
        cut.with_id(f"memory-{time}-{cut.id}") for time in range(times) for cut in remembered
    )
    parts = (new.digest, old.digest, f"{share}", f"{seed}", f"{times}")
    return Corpus(
        name=new.name,
        train=_join([new.train, memory]),
        dev=new.dev,
        test=new.test,
        digest=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        wordless=new.wordless | (old.wordless & {"train"}),
    )


def open_split(config: CorpusConfig, folder: Path, split: SplitName) -> CutSet:
    """Find and check one split, as evaluation needs it; the corpus may lack the others.

    Raises:
        CorpusError: in one line naming the file or split that cannot be used.
    """
    layout = _find_layout(config, folder)
    words = _words_of(config)[SPLITS.index(split)]
    names = _match(layout, config, split)
    return _open(layout, names, config, words, SharedSpeech(), is_training=False).cuts


def _find_layout(config: CorpusConfig, folder: Path) -> _Layout:
    """Find out where the corpus lies and who can read it."""
    if config.name == NO_SPEECH:
        raise CorpusError(
            f"`corpus.name` must be a corpus to train or to measure on, but is `{NO_SPEECH}`"
            " instead; `conformer-sweep prune` needs none."
        )
    if config.name == "demo":
        from core.data.sources import demo  # noqa: PLC0415  # a second of imports, of the demo alone

        root = demo.speak(config.demo, folder / "demo")
    elif config.name == "librispeech":
        root = _librispeech(config)
    else:
        root = Path(config.name).expanduser().resolve()
    layout = _folder_layout(root, config) or _manifest_layout(root, config)
    if layout is not None:
        return layout
    what = "is no folder instead"
    if root.is_dir():
        is_bare = bool(audio_folder.split_names(root)) and config.labels != "teacher"
        hint = '; without transcripts its audio needs `corpus.labels = "teacher"`'
        what = f"holds neither instead{hint if is_bare else ''}"
    raise CorpusError(
        "`corpus.name` must be `demo`, `librispeech`, a folder in the LibriSpeech layout or a"
        " folder of lhotse manifests or Shar or of NeMo's manifests,"
        f" but `{config.name}` {what}."
    )


def _folder_layout(root: Path, config: CorpusConfig) -> _Layout | None:
    """Audio in folders, each with its transcripts or, where a teacher labels, without."""
    spoken = librispeech.split_names(root)
    if config.labels != "teacher":
        splits = spoken
    else:
        splits = (
            []
            if lhotse_manifests.split_names(root) and not spoken
            else audio_folder.split_names(root)
        )

    def load(root: Path, split: str) -> CutSet:
        return (librispeech if split in spoken else audio_folder).load_split(root, split)

    if not splits:
        return None
    return _Layout(root=root, splits=splits, load_split=load, load_wordless=audio_folder.load_split)


def _manifest_layout(root: Path, config: CorpusConfig) -> _Layout | None:
    words: Words = "optional" if config.labels == "teacher" else "needed"
    splits = lhotse_manifests.split_names(root)
    if not splits:
        return None
    load = functools.partial(lhotse_manifests.load_split, allowed=frozenset(config.allow))
    return _Layout(
        root=root,
        splits=splits,
        load_split=functools.partial(load, words=words),
        load_wordless=functools.partial(load, words="unread"),
    )


def _librispeech(config: CorpusConfig) -> Path:
    if not config.root:
        raise CorpusError(
            '`corpus.root` must be LibriSpeech\'s folder when `corpus.name = "librispeech"`,'
            " but is empty instead."
        )
    root = Path(config.root).expanduser().resolve()
    return librispeech.fetch(root, [config.train, config.dev, config.test])


def _choose(layout: _Layout, config: CorpusConfig) -> tuple[list[str], list[str], list[str]]:
    """Match the three globs; only test may match nothing, and training speech judges nothing."""
    if layout.root.is_file():
        raise CorpusError(
            f"`corpus.name` must be a folder with splits to train and to judge on, but"
            f" `{layout.root}` is one manifest instead; name the folder of its manifests."
        )
    train, dev = _match(layout, config, "train"), _match(layout, config, "dev")
    test = fnmatch.filter(layout.splits, config.test)
    for name, held_out in (("dev", dev), ("test", test)):
        shared = [split for split in train if split in held_out]
        if shared:
            raise CorpusError(
                f"`corpus.train` and `corpus.{name}` must choose different splits,"
                f" but both choose `{shared[0]}` instead."
            )
    return train, dev, test


def _match(layout: _Layout, config: CorpusConfig, split: SplitName) -> list[str]:
    if layout.root.is_file():
        return layout.splits
    glob = str(getattr(config, split))
    names = fnmatch.filter(layout.splits, glob)
    if not names:
        raise CorpusError(
            f"`corpus.{split}` must match a split of `{layout.root}`"
            f" ({', '.join(layout.splits)}), but is `{glob}` instead."
        )
    return names


def _open(
    layout: _Layout,
    names: list[str],
    config: CorpusConfig,
    words: Words,
    shared: SharedSpeech,
    *,
    is_training: bool,
) -> _Part:
    """Read splits, check each utterance and take the fingerprint of all.

    Args:
        layout: where they lie.
        names: the splits.
        config: the corpus.
        words: whether there must be any.
        shared: takes what is trained on, or counts what of it is here.
        is_training: which of the two.
    """
    load = layout.load_wordless if words == "unread" else layout.load_split
    parts = [change_case(load(layout.root, name), config.case) for name in names]
    # A Shar folder is described first, without its archives: they are opened when audio is read.
    described = [
        change_case(_describe(layout, name, config), config.case) if cuts.is_lazy else cuts
        for name, cuts in zip(names, parts, strict=True)
    ]
    is_wordless = words == "unread" or (
        words == "optional"
        and bool(names)
        and not any(transcript(cut) for cuts in described for cut in cuts)
    )
    count = _Count(config=config, shared=shared, is_training=is_training)
    for name, cuts in zip(names, described, strict=True):
        before = count.cuts
        for cut in cuts:
            count.take(cut, layout.root / name, None if is_wordless else transcript(cut))
        if count.cuts == before:
            raise CorpusError(f"`{layout.root / name}` must have utterances, but has none instead.")
    return _Part(
        cuts=_join(parts),
        num_cuts=count.cuts,
        num_long=count.long,
        digest=count.digest.hexdigest(),
        is_wordless=is_wordless,
    )


@dataclass(kw_only=True, slots=True)
class _Count:
    """Counts and fingerprints the utterances that one glob chose."""

    config: CorpusConfig
    shared: SharedSpeech
    is_training: bool
    cuts: int = 0
    long: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    names: NameCheck = field(default_factory=NameCheck)
    files: FileCheck = field(default_factory=FileCheck)

    def take(self, cut: Cut, split: Path, text: str | None) -> None:
        """Checks an utterance and adds its fingerprint; without words `text` is None.

        Raises:
            CorpusError: naming what of it cannot be used.
        """
        self.names.add(cut.id, split)
        _check(cut, self.config, self.files, is_silent=text == "")
        print_of_cut = fingerprint(cut, text or "")
        self.digest.update(print_of_cut.whole)
        if self.is_training:
            self.shared.trained.add(print_of_cut.audio)
        else:
            self.shared.compare(cut.id, print_of_cut.audio)
        self.cuts += 1
        self.long += not _is_short(self.config.max_seconds, cut)


def _describe(layout: _Layout, name: str, config: CorpusConfig) -> CutSet:
    return lhotse_manifests.describe_split(layout.root, name, allowed=frozenset(config.allow))


def _join(parts: list[CutSet]) -> CutSet:
    # A list of the cuts of a Shar folder would hold all of its audio in memory.
    if any(cuts.is_lazy for cuts in parts):
        return functools.reduce(operator.add, parts)
    return CutSet.from_cuts(cut for cuts in parts for cut in cuts)


def _filter(cuts: CutSet, keep: Callable[[Cut], bool]) -> CutSet:
    return cuts.filter(keep) if cuts.is_lazy else CutSet.from_cuts(filter(keep, cuts))


def _check(cut: Cut, config: CorpusConfig, files: FileCheck, *, is_silent: bool) -> None:
    for recording in recordings_in(cut):
        files.compare(recording)
    name = source_name(cut)
    if is_silent:
        raise CorpusError(f"`{cut.id}` (`{name}`) must have words, but has none instead.")
    if cut.num_channels != 1:
        raise CorpusError(
            f"`{name}` must have one channel, but has {cut.num_channels} instead; name a channel"
            " in its supervisions, or mix it down."
        )
    check_rate(name, cut.sampling_rate, resample=config.resample)


def _is_remembered(share: float, seed: int, cut: Cut) -> bool:
    # A number from 0 to 2**64 - 1 for each name. Share 0.25 takes those below 2**62, and 0.5 those
    # below 2**63: the first are among the second.
    draw = hashlib.sha256(f"{seed} {cut.id}".encode()).digest()[:8]
    return int.from_bytes(draw, "big") < share * 2**64


def _is_short(max_seconds: float, cut: Cut) -> bool:
    return bool(cut.duration <= max_seconds)
