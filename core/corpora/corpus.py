"""A corpus: a name or a path becomes checked utterances in three splits."""

import fnmatch
import functools
import hashlib
import logging
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lhotse import CutSet
from lhotse.cut import Cut

from core.config import NO_SPEECH, CorpusConfig
from core.corpora import librispeech, manifests, plain
from core.corpora.audio import CorpusError, check_file, check_rate, files_of, source_of
from core.corpora.casing import recased
from core.corpora.manifests import Words
from core.corpora.text import transcript

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
    """Splits whose words only a teacher can say; core/corpora/labels.py asks it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    root: Path
    splits: list[str]
    load_split: Callable[[Path, str], CutSet]
    load_wordless: Callable[[Path, str], CutSet]
    """The same utterances, perhaps by other names, and nothing of what is said in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What one of the three globs chose."""

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
    layout = _layout(config, folder)
    chosen = _choose(layout, config)
    parts = [
        _open(layout, names, config, words)
        for names, words in zip(chosen, _words_of(config), strict=True)
    ]
    train, dev, test = parts
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
    old utterances a new one: little memory, seldom heard, is forgotten all the same.

    Raises:
        CorpusError: if the share leaves no utterance.
    """
    kept = list(_filter(old.train, functools.partial(_is_remembered, share, seed)))
    if not kept:
        raise CorpusError(
            f"`memory_share` must leave training utterances of `{old.name}`, but {share:g} of"
            " them are none."
        )
    count = sum(1 for _ in new.train)
    times = max(1, math.ceil(balance * count / len(kept)))
    memory = CutSet.from_cuts(
        cut.with_id(f"memory-{time}-{cut.id}") for time in range(times) for cut in kept
    )
    parts = (new.digest, old.digest, f"{share}", f"{seed}", f"{times}")
    return Corpus(
        name=new.name,
        train=_join([new.train, memory]),
        dev=new.dev,
        test=new.test,
        digest=hashlib.sha256("".join(parts).encode()).hexdigest(),
    )


def open_split(config: CorpusConfig, folder: Path, split: SplitName) -> CutSet:
    """Find and check one split, as evaluation needs it; the corpus may lack the others.

    Raises:
        CorpusError: in one line naming the file or split that cannot be used.
    """
    layout = _layout(config, folder)
    words = _words_of(config)[SPLITS.index(split)]
    return _open(layout, _match(layout, config, split), config, words).cuts


def _layout(config: CorpusConfig, folder: Path) -> _Layout:
    """Find out where the corpus lies and who can read it."""
    if config.name == NO_SPEECH:
        raise CorpusError(
            f"`corpus.name` must be a corpus to train or to measure on, but is `{NO_SPEECH}`"
            " instead; `conformer-sweep prune` needs none."
        )
    if config.name == "demo":
        from core.corpora import demo  # noqa: PLC0415  # a second of imports, of the demo alone

        root = demo.speak(config.demo, folder / "demo")
    elif config.name == "librispeech":
        root = _librispeech(config)
    else:
        root = Path(config.name).expanduser().resolve()
    found = _folders(root, config) or _listed(root, config)
    if found is not None:
        return found
    what = "is no folder instead"
    if root.is_dir():
        is_bare = bool(plain.split_names(root)) and config.labels != "teacher"
        hint = '; without transcripts its audio needs `corpus.labels = "teacher"`'
        what = f"holds neither instead{hint if is_bare else ''}"
    raise CorpusError(
        "`corpus.name` must be `demo`, `librispeech`, a folder in the LibriSpeech layout or a"
        f" folder of lhotse manifests or Shar, but `{config.name}` {what}."
    )


def _folders(root: Path, config: CorpusConfig) -> _Layout | None:
    """Audio in folders, each with its transcripts or, where a teacher labels, without."""
    spoken = librispeech.split_names(root)
    if config.labels != "teacher":
        splits = spoken
    else:
        splits = [] if manifests.split_names(root) and not spoken else plain.split_names(root)

    def load(root: Path, split: str) -> CutSet:
        return (librispeech if split in spoken else plain).load_split(root, split)

    if not splits:
        return None
    return _Layout(root=root, splits=splits, load_split=load, load_wordless=plain.load_split)


def _listed(root: Path, config: CorpusConfig) -> _Layout | None:
    words: Words = "optional" if config.labels == "teacher" else "needed"
    splits = manifests.split_names(root)
    if not splits:
        return None
    return _Layout(
        root=root,
        splits=splits,
        load_split=functools.partial(manifests.load_split, words=words),
        load_wordless=functools.partial(manifests.load_split, words="unread"),
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
    glob = str(getattr(config, split))
    names = fnmatch.filter(layout.splits, glob)
    if not names:
        raise CorpusError(
            f"`corpus.{split}` must match a split of `{layout.root}`"
            f" ({', '.join(layout.splits)}), but is `{glob}` instead."
        )
    return names


def _open(layout: _Layout, names: list[str], config: CorpusConfig, words: Words) -> _Part:
    """Read splits, check each utterance and take the fingerprint of all."""
    load = layout.load_wordless if words == "unread" else layout.load_split
    parts = [recased(load(layout.root, name), config.case) for name in names]
    described = [
        recased(manifests.describe_split(layout.root, name), config.case) if cuts.is_lazy else cuts
        for name, cuts in zip(names, parts, strict=True)
    ]
    is_wordless = words == "unread" or (
        words == "optional"
        and bool(names)
        and not any(transcript(cut) for cuts in described for cut in cuts)
    )
    digest = hashlib.sha256()
    num_cuts = num_long = 0
    for name, cuts in zip(names, described, strict=True):
        before = num_cuts
        for cut in cuts:
            text = "" if is_wordless else transcript(cut)
            _check(cut, config, is_silent=not (text or is_wordless))
            digest.update(_fingerprint(cut, text))
            num_cuts += 1
            num_long += not _is_short(config.max_seconds, cut)
        if num_cuts == before:
            raise CorpusError(f"`{layout.root / name}` must have utterances, but has none instead.")
    return _Part(
        cuts=_join(parts),
        num_cuts=num_cuts,
        num_long=num_long,
        digest=digest.hexdigest(),
        is_wordless=is_wordless,
    )


def _join(parts: list[CutSet]) -> CutSet:
    if any(cuts.is_lazy for cuts in parts):
        return functools.reduce(operator.add, parts)
    return CutSet.from_cuts(cut for cuts in parts for cut in cuts)


def _filter(cuts: CutSet, keep: Callable[[Cut], bool]) -> CutSet:
    return cuts.filter(keep) if cuts.is_lazy else CutSet.from_cuts(filter(keep, cuts))


def _check(cut: Cut, config: CorpusConfig, *, is_silent: bool) -> None:
    for file in files_of(cut):
        check_file(file)
    name = source_of(cut)
    if is_silent:
        raise CorpusError(f"`{cut.id}` (`{name}`) must have words, but has none instead.")
    if cut.num_channels != 1:
        raise CorpusError(f"`{name}` must have one channel, but has {cut.num_channels} instead.")
    check_rate(name, cut.sampling_rate, resample=config.resample)


def _fingerprint(cut: Cut, text: str) -> bytes:
    """Name, length and words, and of its audio the size and some bytes of the middle."""
    head = f"{cut.id}\t{cut.duration:.6f}\t{cut.sampling_rate}\t{text}\n".encode()
    return head + b"".join(_middle(file) for file in files_of(cut))


def _middle(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(size // 2)
        return size.to_bytes(8, "little") + opened.read(1024)


def _is_remembered(share: float, seed: int, cut: Cut) -> bool:
    draw = hashlib.sha256(f"{seed} {cut.id}".encode()).digest()[:8]
    return int.from_bytes(draw, "big") < share * 2**64


def _is_short(max_seconds: float, cut: Cut) -> bool:
    return bool(cut.duration <= max_seconds)
