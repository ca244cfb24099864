"""Pruned models beside the unpruned one, on speech that was not calibrated on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float

from core.bundle import Bundle
from core.config.trial import CorpusConfig
from core.conformer.model import Conformer
from core.data.calibration_speech import CalibrationSpeech, SpeechBatch
from core.data.corpus import SplitName
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.decoders.places import Places
from core.evaluation.batch_decoding import best_tokens, decode_store
from core.evaluation.timer import measure_latency
from core.evaluation.wer import word_errors
from core.inference.recognizer import read_split
from core.pruning.sensitivity import mean_kl
from core.pruning.space import Space

LATENCY_REPEATS = 3
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedModel:
    """One size, and how far it is from the unpruned model on held-out speech."""

    folder: str
    """Of its bundle, in the folder of the results; empty for the unpruned model."""
    target: float
    flops_sparsity: float
    params_sparsity: float
    params: int
    gflops: float
    latency_ms: float
    kl: float
    """Mean over held-out frames of the divergence from the unpruned model, in nats."""
    words_changed: float
    """Word errors against the unpruned model's transcripts of held-out speech, a share."""
    wer: float | None = None
    """On a split with transcripts, a share; None if there is none."""
    latency_busy: bool = False
    """Whether other programs kept the machine busy meanwhile, so that the latency says little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSpeech:
    """A split of a corpus, with its transcripts."""

    __test__ = False  # no class of tests

    name: str
    store: FeatureStore

    @classmethod
    def read(
        cls, dense: Bundle, corpus: CorpusConfig, split: SplitName, folder: Path
    ) -> "TestSpeech":
        """Compute the features of a split in a folder.

        Args:
            dense: the model that reads them.
            corpus: has the split.
            split: its name.
            folder: where they are stored.

        Raises:
            CorpusError: naming what of the corpus cannot be used.
        """
        store = read_split(dense, corpus, split, folder, features=folder / f"features-{split}")
        return cls(name=f"{corpus.name} {split}", store=store)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the unpruned model says of held-out speech, to compare others with."""

    tokenizer: Tokenizer
    held_out: Sequence[SpeechBatch]
    places: Sequence[Places | None]
    """Of each batch: where transducers are compared."""
    log_probs: Sequence[Float[torch.Tensor, "frames vocabulary"]]
    texts: Sequence[str]
    utterance_seconds: float
    test: TestSpeech | None

    @classmethod
    def of(
        cls,
        dense: Bundle,
        speech: CalibrationSpeech,
        *,
        utterance_seconds: float,
        test: TestSpeech | None = None,
    ) -> "Comparison":
        """Run the unpruned model on held-out speech; latency is of noise of this length."""
        places = [dense.model.best_places(*batch) for batch in speech.held_out]
        outputs = [
            _run(dense.model, dense.tokenizer, *inputs)
            for inputs in zip(speech.held_out, places, strict=True)
        ]
        return cls(
            tokenizer=dense.tokenizer,
            held_out=speech.held_out,
            places=places,
            log_probs=[log_probs for log_probs, _ in outputs],
            texts=[text for _, texts in outputs for text in texts],
            utterance_seconds=utterance_seconds,
            test=test,
        )

    def compare(self, model: Conformer, space: Space, *, folder: str, target: float) -> PrunedModel:
        """Measure a model beside the unpruned one.

        Args:
            model: of any size.
            space: of the unpruned model.
            folder: of its bundle.
            target: share of the resource that was to be removed.
        """
        outputs = [
            _run(model, self.tokenizer, *inputs)
            for inputs in zip(self.held_out, self.places, strict=True)
        ]
        texts = [text for _, texts in outputs for text in texts]
        cost = space.dense_cost(model)
        latency = measure_latency(
            model,
            utterance_seconds=self.utterance_seconds,
            repeats=LATENCY_REPEATS,
            device=CPU,
        )
        return PrunedModel(
            folder=folder,
            target=target,
            flops_sparsity=float(space.sparsity(cost, "flops")),
            params_sparsity=float(space.sparsity(cost, "params")),
            params=int(cost.params),
            gflops=float(cost.flops) / 1e9,
            latency_ms=1000 * latency.seconds,
            latency_busy=latency.is_busy,
            kl=mean_kl(self.log_probs, [log_probs for log_probs, _ in outputs]),
            words_changed=word_errors(self.texts, texts).wer if any(self.texts) else 0.0,
            wer=self.wer(model),
        )

    def wer(self, model: Conformer) -> float | None:
        """Return the word error rate on the split with transcripts; None if there is none."""
        if self.test is None:
            return None
        store = self.test.store
        shortest = model.frontend_spec.shortest
        texts = decode_store(model, store, self.tokenizer, CPU, shortest=shortest)
        return word_errors(store.texts, texts).wer


@torch.inference_mode()
def _run(
    model: Conformer, tokenizer: Tokenizer, batch: SpeechBatch, places: Places | None
) -> tuple[Float[torch.Tensor, "distributions outputs"], list[str]]:
    """Return log-probabilities at frames or places, and the text of each window."""
    output = model(*batch, places=places)
    return output.log_probs(), [tokenizer.decode(ids) for ids in best_tokens(model, output)]
