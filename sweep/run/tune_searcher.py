"""The ledger as a Ray Tune searcher: first what was left unfinished, then new points.

A proposal is computed beside the running trials: until it is there, Tune is told to ask again.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from typing import Any

from ray.tune.search import Searcher

from sweep.config.sweep import SweepConfig
from sweep.ledger.ledger import Ledger
from sweep.ledger.records import TrialRecord
from sweep.search.budget import reached_limit
from sweep.search.sampler import Params, Sampling

PATIENCE_SECONDS = 0.05
"""Anchors and quasi-random points are there at once; what a model says is fetched later."""


class LedgerSearcher(Searcher):
    """Hands out trials until the ledger holds as many as wanted and none waits.

    Args:
        ledger: what is there already; new trials are added to it.
        sampling: proposes new ones, and has been told of all in the ledger.
        config: how many there shall be in all, and what else is a limit.
        concurrent: how many side by side at most; 0 is as many as the cluster holds.
        pack: a record as Tune carries it to a worker.
    """

    def __init__(
        self,
        ledger: Ledger,
        sampling: Sampling,
        *,
        config: SweepConfig,
        concurrent: int,
        pack: Callable[[TrialRecord], dict[str, Any]],
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._sampling = sampling
        self._config = config
        self._concurrent = concurrent
        self._pack = pack
        self._waiting = deque(r.number for r in ledger.records() if r.state == "waiting")
        self._live: set[int] = set()
        self._is_ending = False
        self._limit: str | None = None
        self._limit_is_stale = True
        self._proposal: Future[Params] | None = None
        # One thread, so that proposals and what they are based on follow each other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampling")
        self._thread.submit(sampling.warm_up)

    def suggest(self, trial_id: str) -> Any:
        """Give a trial, None for "ask again", or the word that there will be no more."""
        del trial_id  # Tune's names for trials last as long as Tune; numbers last
        if self._is_ending:
            return Searcher.FINISHED
        if self._concurrent and len(self._live) >= self._concurrent:
            return None
        if self._waiting:
            return self._hand_out(self._ledger.record(self._waiting.popleft()))
        if self._should_add():
            params = self._proposed()
            if params is None:
                return None
            return self._hand_out(self._ledger.add(params, self._sampling.space.distributions))
        # A live trial may yet lose its worker and come back.
        return None if self._live else Searcher.FINISHED

    def ended(self, record: TrialRecord) -> None:
        """A trial is over, or waits again because its worker was lost."""
        self._live.discard(record.number)
        self._limit_is_stale = True
        if record.state == "waiting":
            self._waiting.append(record.number)
        else:
            self._thread.submit(self._sampling.observe, record)

    def end(self) -> None:
        """Hand out no more."""
        self._is_ending = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _should_add(self) -> bool:
        """Whether the sweep wants another trial; asked anew only when one has ended."""
        if len(self._ledger) >= self._config.num_trials:
            return False
        if self._limit_is_stale:
            self._limit = reached_limit(self._ledger.records(), self._config)
            self._limit_is_stale = False
        return self._limit is None

    def _hand_out(self, record: TrialRecord) -> dict[str, Any]:
        self._live.add(record.number)
        return self._pack(record)

    def _proposed(self) -> Params | None:
        if self._proposal is None:
            self._proposal = self._thread.submit(self._sampling.propose, len(self._ledger))
        try:
            params = self._proposal.result(timeout=PATIENCE_SECONDS)
        except NotYetError:
            return None
        self._proposal = None
        return params

    # ---- what Tune asks of every searcher, and the ledger makes idle ----

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """The driver's callback hears more, and says so by `ended`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of Tune's is ever restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of Tune's is ever restored."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher, for a restore that is never asked for."""
        return {}
