"""The ledger as a Ray Tune searcher: first the unfinished trials, then new points.

A proposal is computed in a thread while trials run; until it is ready, Tune has to ask again.
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
"""Anchors and quasi-random points are ready at once; those of a model are fetched later."""


class LedgerSearcher(Searcher):
    """Gives trials to Tune until the ledger holds all trials of the sweep and none waits.

    Args:
        ledger: the trials so far; new ones are added to it.
        sampling: proposes new ones, and has observed all in the ledger.
        config: the number of trials and other limits.
        concurrent: most trials at the same time; 0 is as many as the cluster holds.
        pack: makes the job that Tune sends to a worker.
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
        """A trial for Tune, None to be asked again, or `FINISHED` if there are no more."""
        del trial_id  # Tune's names for trials last as long as Tune; numbers last
        if self._is_ending:
            return Searcher.FINISHED
        if self._concurrent and len(self._live) >= self._concurrent:
            return None
        if self._waiting:
            return self._hand_out(self._ledger.record(self._waiting.popleft()))
        if self._should_add():
            params = self._next_proposal()
            if params is None:
                return None
            return self._hand_out(self._ledger.add(params, self._sampling.space.distributions))
        # A live trial may yet lose its worker and come back.
        return None if self._live else Searcher.FINISHED

    def release(self, record: TrialRecord) -> None:
        """Take a trial back that is over, or that waits again because its worker was lost."""
        self._live.discard(record.number)
        self._limit_is_stale = True
        if record.state == "waiting":
            self._waiting.append(record.number)
        else:
            # In the thread, after a proposal that is being computed: the study is not locked.
            self._thread.submit(self._sampling.observe, record)

    def end(self) -> None:
        """Give no more trials to Tune."""
        self._is_ending = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _should_add(self) -> bool:
        """Whether the sweep needs another trial; computed again only after one has ended."""
        if len(self._ledger) >= self._config.num_trials:
            return False
        # Tune asks many times a second, and a plateau needs two hypervolumes.
        if self._limit_is_stale:
            self._limit = reached_limit(self._ledger.records(), self._config)
            self._limit_is_stale = False
        return self._limit is None

    def _hand_out(self, record: TrialRecord) -> dict[str, Any]:
        self._live.add(record.number)
        return self._pack(record)

    def _next_proposal(self) -> Params | None:
        if self._proposal is None:
            self._proposal = self._thread.submit(self._sampling.propose, len(self._ledger))
        try:
            # Tune handles the reports of running trials in the loop that asks: a Gaussian process
            # that computes for half a second would hold them all up.
            params = self._proposal.result(timeout=PATIENCE_SECONDS)
        except NotYetError:
            return None
        self._proposal = None
        return params

    # ---- methods of every searcher that the ledger makes unnecessary ----

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Ignored: the driver's callback knows more, and calls `release`."""

    def save(self, checkpoint_path: str) -> None:
        """Ignored: no state of Tune's is ever restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Ignored: no state of Tune's is ever restored."""

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles the searcher to restore it, which never happens."""
        return {}
