"""A bundle at work: files to text, and a corpus to a word error rate; at less than its depth."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core.config import CorpusConfig
from core.corpora.audio import read_file
from core.corpora.corpus import SplitName, open_split
from core.corpora.labels import Hearer
from core.corpora.listening import features_of
from core.corpora.store import FeatureStore
from core.deploy.bundle import DEPTH_ORDER, Bundle, BundleError
from core.evaluation.decoding import greedy
from core.evaluation.recognition import recognised
from core.evaluation.wer import WerReport, wer_report
from core.pruning.extraction import of_blocks


def at_depth(bundle: Bundle, depth: int) -> Bundle:
    """The recogniser with so many of its blocks: the best by its report's order, or the first.

    Raises:
        ValueError: if it does not have so many.
        BundleError: if the report's order is none of its blocks.
    """
    count = len(bundle.model.blocks)
    if not 1 <= depth <= count:
        raise ValueError(
            f"`--depth` must be from 1 to {count}, the model's blocks, but is {depth} instead"
        )
    best = bundle.report.get(DEPTH_ORDER) or list(range(count))
    is_list = isinstance(best, list) and all(type(number) is int for number in best)
    if not is_list or sorted(best) != list(range(count)):
        raise BundleError(
            f"`{DEPTH_ORDER}` of the bundle's report must name each of its {count} blocks,"
            f" but is {str(best)[:80]} instead."
        )
    return replace(bundle, model=of_blocks(bundle.model, best[:depth]))


@torch.inference_mode()
def heard_in(bundle: Bundle, waveform: Float[Tensor, " samples"]) -> str:
    """The words in samples at 16 kHz; speech too short for a frame gives none."""
    hearing = bundle.model.shape.hearing
    features, num_frames = features_of(hearing, waveform[None], torch.tensor([len(waveform)]))
    if int(num_frames[0]) < hearing.shortest:
        return ""
    output = bundle.model(features, num_frames)
    ids = greedy(output.logits.log_softmax(-1), output.num_frames)[0]
    return bundle.tokenizer.decode(ids)


def hearer_of(bundle: Bundle, digest: str) -> Hearer:
    """The recogniser of that digest, to label speech by."""
    return Hearer(digest=digest, hears=partial(heard_in, bundle))


def transcribe(
    bundle: Bundle, files: Iterable[Path], *, resample: bool = True
) -> Iterator[tuple[Path, str]]:
    """One text a file, in order; speech too short for a frame gives an empty one.

    Raises:
        CorpusError: naming a file that is missing, empty, unreadable or of a refused sample rate.
    """
    for file in files:
        yield file, heard_in(bundle, read_file(file, resample=resample))


def evaluate(
    bundle: Bundle,
    corpus: CorpusConfig,
    split: SplitName,
    folder: Path,
    *,
    heard_by: nn.Module | None = None,
) -> WerReport:
    """Word error rate on a split.

    Args:
        bundle: the recogniser.
        corpus: its speech.
        split: a part of it.
        folder: where a demo corpus is spoken.
        heard_by: instead of the bundle's model, such as its graph in another runtime.

    Raises:
        CorpusError: naming what of the corpus cannot be used.
    """
    cuts = open_split(corpus, folder, split)
    with TemporaryDirectory() as scratch:
        hearing = bundle.model.shape.hearing
        store = FeatureStore.build(
            cuts, bundle.tokenizer, Path(scratch) / "features", is_training=False, hearing=hearing
        )
        model = bundle.model if heard_by is None else heard_by
        shortest = hearing.shortest
        texts = recognised(model, store, bundle.tokenizer, torch.device("cpu"), shortest=shortest)
        return wer_report(store.texts, texts)
