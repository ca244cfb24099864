"""Evaluation of a trial's models: word error rate on held-out speech, cost and latency."""

import torch
from torch import nn

from core.config.trial import TrialConfig
from core.conformer.model import Conformer
from core.data.corpus import SplitName
from core.data.feature_cache import FeatureStore
from core.data.prepare import Speech
from core.evaluation.batch_decoding import decode_store
from core.evaluation.timer import measure_latency
from core.evaluation.wer import WerReport, wer_report
from core.pruning.space import Space
from core.report import Outcome, Reference, Report, Stage


class Evaluator:
    """Measures all dense models of one trial in the same way."""

    def __init__(
        self, config: TrialConfig, space: Space, speech: Speech | None, device: torch.device
    ) -> None:
        """Keep what measurements need; `speech` may be None if only costs are measured."""
        self.config, self.space, self.speech, self.device = config, space, speech, device

    def report(self, model: Conformer, stage: Stage) -> Report:
        """Measure a model on dev; the training loop fills in steps and losses."""
        assert self.speech is not None
        cost = self.space.dense_cost(model)
        wer = self.wer(model, self.speech.dev)
        return Report(
            stage=stage,
            step=0,
            total_steps=0,
            wer=wer.wer if wer else None,
            wer_against=self._reference("dev"),
            gflops=float(cost.flops) / 1e9,
            realised_sparsity=float(self.space.sparsity(cost, self.config.pruning.resource)),
        )

    def outcome(
        self, model: Conformer, *, target: float, steps: int, folder: str = "model"
    ) -> Outcome:
        """Measure a finished model on dev and test, with latency.

        Args:
            model: dense.
            target: the share of the resource to remove.
            steps: optimizer steps so far.
            folder: the name of its bundle.
        """
        assert self.speech is not None
        pruning, cost = self.config.pruning, self.space.dense_cost(model)
        wer, test = self.wer(model, self.speech.dev), self.wer(model, self.speech.test)
        assert wer is not None, "a corpus has dev speech"
        latency = measure_latency(
            model,
            utterance_seconds=pruning.utterance_seconds,
            repeats=self.config.evaluation.latency_repeats,
            device=self.device,
            judged=self.config.evaluation.decoder,
        )
        return Outcome(
            method=pruning.method,
            resource=pruning.resource,
            target_sparsity=target,
            realised_sparsity=float(self.space.sparsity(cost, pruning.resource)),
            wer=wer.wer,
            wer_low=wer.low,
            wer_high=wer.high,
            wer_against=self._reference("dev"),
            test_wer=test.wer if test else None,
            test_wer_low=test.low if test else None,
            test_wer_high=test.high if test else None,
            test_wer_against=self._reference("test"),
            gflops=float(cost.flops) / 1e9,
            params=int(cost.params),
            flops_sparsity=float(self.space.sparsity(cost, "flops")),
            params_sparsity=float(self.space.sparsity(cost, "params")),
            latency_sparsity=float(self.space.sparsity(cost, "latency"))
            if self.space.latency
            else None,
            latency_ms=1000 * latency.seconds,
            latency_busy=latency.is_busy,
            real_time_factor=latency.seconds / pruning.utterance_seconds,
            steps=steps,
            model=folder,
        )

    def _reference(self, split: SplitName) -> Reference:
        assert self.speech is not None
        return "teacher" if split in self.speech.pseudo_labeled else "transcripts"

    def wer(self, model: nn.Module, store: FeatureStore) -> WerReport | None:
        """Return the word error rate on a store, or None if it holds no speech."""
        if not len(store):
            return None
        assert self.speech is not None
        config = self.config.evaluation
        # Of the unpruned model: pruning never changes the front end's kernels and strides.
        shortest = self.space.model.shape.frontend_spec.shortest
        texts = decode_store(
            model,
            store,
            self.speech.tokenizer,
            self.device,
            shortest=shortest,
            judged=config.decoder,
        )
        return wer_report(
            store.texts,
            texts,
            samples=config.bootstrap_samples,
            confidence=config.confidence,
            # The same resamples for all models, whatever their trial's seed: their intervals
            # compare.
            seed=0,
        )
