"""The lattice of a transducer: the likelihood of a transcript, summed over all its alignments.

At place (t, u), before frame t and after u tokens, arcs of two kinds leave. A blank of duration d
leads to (t + d, u), a label of duration d to (t + d, u + 1). RNN-T (Graves, 2012) has blanks of
duration 1 and labels of duration 0. TDT (Xu et al., 2023) has several durations, 0 for labels
alone. A path begins at (0, 0) and ends with a blank that leads to (T, U) exactly; a label must lead
to a frame, so to t < T.

Sums run in float64. All frames' arcs lie in memory, but no distribution over the vocabulary.

Shapes: B batch, T frames, U tokens, P = U + 1 places, K blank durations, L label durations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NEVER = -1e30
"""The logarithm of 0, finite so that differences of two are 0 and not NaN."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arcs:
    """Log-probabilities of the arcs that leave each place, in the order of their durations."""

    blanks: Float[Tensor, "blank_durations batch frames places"]
    labels: Float[Tensor, "label_durations batch frames places"]
    """Of the next token of the transcript; in the last place there is none."""
    blank_durations: tuple[int, ...]
    label_durations: tuple[int, ...]
    """Ascending; 0, if it is one of them, is the first."""

    def __post_init__(self) -> None:
        if min(self.blank_durations) < 1:
            raise ValueError(
                "`blank_durations` must be 1 or more, as a path would not end,"
                f" but are {self.blank_durations} instead"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LatticeScores:
    """Log-probabilities that a transducer gives along a transcript, at each place."""

    blank: Float[Tensor, "batch frames places"]
    label: Float[Tensor, "batch frames places"]
    """Of the next token of the transcript; in the last place there is none."""
    duration: Float[Tensor, "batch frames places durations"]
    durations: tuple[int, ...]
    """Of TDT, ascending; none for RNN-T."""

    def arcs(self, *, sigma: float = 0.0) -> Arcs:
        """Return the lattice's arcs.

        Args:
            sigma: by which log-probabilities of tokens and blank are lowered. A path of fewer arcs
                loses less, so TDT learns to prefer long durations.
        """
        blank, label = self.blank - sigma, self.label - sigma
        if not self.durations:
            return Arcs(
                blanks=blank[None], labels=label[None], blank_durations=(1,), label_durations=(0,)
            )
        by_duration = self.duration.movedim(-1, 0)
        # Durations ascend: blanks have all but one of 0.
        first = int(self.durations[0] == 0)
        return Arcs(
            blanks=blank + by_duration[first:],
            labels=label + by_duration,
            blank_durations=self.durations[first:],
            label_durations=self.durations,
        )

    def without_durations(self) -> "LatticeScores":
        """Return the same tokens and blanks as an RNN-T would give."""
        return replace(self, duration=self.duration[..., :0], durations=())


def transducer_loss(
    arcs: Arcs,
    num_frames: Int[Tensor, " batch"],
    num_tokens: Int[Tensor, " batch"],
    *,
    fastemit: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Return the negative log-likelihood of each utterance's transcript.

    Its gradient by an arc's log-probability is minus the probability that a path takes the arc.

    Args:
        arcs: of the lattice.
        num_frames: of each utterance, at least 1.
        num_tokens: of each transcript.
        fastemit: by which gradients of labels grow, so that tokens come early (Yu et al., 2021).
    """
    with torch.no_grad():
        lattice = _Lattice(arcs, num_frames, num_tokens)
        backward = lattice.backward_sums()
        log_likelihood = backward[0, :, 0]
        blanks, labels = lattice.posteriors(lattice.forward_sums(), backward, log_likelihood)
    # Linear in the arcs, with the gradient of the loss; its value is then set to the loss's.
    linear = _weighted_sum(blanks, arcs.blanks) + (1 + fastemit) * _weighted_sum(
        labels, arcs.labels
    )
    return (-log_likelihood - linear).detach().to(linear.dtype) + linear


def _weighted_sum(
    posteriors: Float[Tensor, "durations batch frames places"],
    arcs: Float[Tensor, "durations batch frames places"],
) -> Float[Tensor, " batch"]:
    # Without arcs that no path takes: 0 times minus infinity is NaN.
    taken = arcs.masked_fill(posteriors == 0, 0.0)
    return -(posteriors.to(arcs.dtype) * taken).sum((0, 2, 3))


class _Lattice:
    """Sums over paths, frame by frame; labels of duration 0 within a frame by one cumulative sum.

    With s[u] the sum over paths that enter place u of a frame from earlier frames, and y[u] the
    label of duration 0, alpha[u] = LSE(s[u], alpha[u - 1] + y[u - 1]). With c[u] = y[0] + ... +
    y[u - 1] that is alpha[u] = c[u] + LSE over v <= u of (s[v] - c[v]).
    """

    def __init__(
        self, arcs: Arcs, num_frames: Int[Tensor, " batch"], num_tokens: Int[Tensor, " batch"]
    ) -> None:
        _, self.batch, self.time, self.places = arcs.blanks.shape
        self.num_frames = num_frames
        device = arcs.blanks.device
        self.frames = torch.arange(self.time, device=device)[:, None, None]  # (T, 1, 1)
        self.tokens = torch.arange(self.places, device=device)  # (P,)
        self.num_tokens = num_tokens[:, None]
        # Nothing is read of padding, where values may be anything.
        is_real = (self.frames < num_frames[:, None]) & (self.tokens <= self.num_tokens)
        self.is_real = is_real  # (T, B, P)
        # Frames first: a step of the sums reads one frame of all durations.
        self.blanks = arcs.blanks.double().permute(2, 0, 1, 3)  # (T, K, B, P)
        self.blanks = self.blanks.masked_fill(~is_real[:, None], NEVER)
        labels = arcs.labels.double().permute(2, 0, 1, 3)  # (T, L, B, P)
        has_next = is_real & (self.tokens < self.num_tokens)
        labels = labels.masked_fill(~has_next[:, None], NEVER)
        self.blank_durations = list(arcs.blank_durations)
        # Apart: labels that stay in the frame, and those that lead to another.
        stays = arcs.label_durations[0] == 0
        self.staying = labels[:, 0].clamp(min=NEVER) if stays else None
        self.labels = labels[:, int(stays) :]
        self.label_durations = list(arcs.label_durations[int(stays) :])
        self.longest = max(*self.blank_durations, *self.label_durations, 1)

    def forward_sums(self) -> Float[Tensor, "frames batch places"]:
        """Return alpha: the logarithm of the sum over paths from the beginning to each place."""
        # Rows before the first frame and a place before the first: nothing is reached there.
        shape = (self.longest + self.time, self.batch, self.places + 1)
        sums = self.blanks.new_full(shape, NEVER)
        blanks = _delayed(self.blanks, self.blank_durations)
        labels = _delayed(self.labels, self.label_durations)
        before = self._before()
        for t in range(self.time):
            row = self.longest + t
            entering = torch.cat(
                (
                    _rows(sums, row, self.blank_durations, -1)[..., 1:] + blanks[t],
                    # From one place further left, with the label of that place.
                    _rows(sums, row, self.label_durations, -1)[..., :-1]
                    + F.pad(labels[t, ..., :-1], (1, 0), value=NEVER),
                )
            ).logsumexp(0)
            if t == 0:
                entering[:, 0] = 0.0
            sums[row, :, 1:] = _cumulative(entering, None if before is None else before[t])
        return sums[self.longest :, :, 1:]

    def backward_sums(self) -> Float[Tensor, "frames batch places"]:
        """Return beta: the logarithm of the sum over paths from each place to the end."""
        shape = (self.time + self.longest, self.batch, self.places + 1)
        sums = self.blanks.new_full(shape, NEVER)
        ending, after = self._ending(), self._after()
        for t in reversed(range(self.time)):
            leaving = torch.cat(
                (
                    ending[t][None],
                    _rows(sums, t, self.blank_durations, 1)[..., :-1] + self.blanks[t],
                    _rows(sums, t, self.label_durations, 1)[..., 1:] + self.labels[t],
                )
            ).logsumexp(0)
            # The same sum from the right.
            mirrored = None if after is None else after[t].flip(-1)
            total = _cumulative(leaving.flip(-1), mirrored).flip(-1)
            sums[t, :, :-1] = torch.where(self.is_real[t], total, NEVER)
        return sums[: self.time, :, :-1]

    def posteriors(
        self,
        forward: Float[Tensor, "frames batch places"],
        backward: Float[Tensor, "frames batch places"],
        log_likelihood: Float[Tensor, " batch"],
    ) -> tuple[
        Float[Tensor, "blank_durations batch frames places"],
        Float[Tensor, "label_durations batch frames places"],
    ]:
        """Return the probability that a path takes an arc, for all arcs."""
        # Nothing is taken where no path leads to the end.
        is_possible = (log_likelihood > NEVER / 2)[:, None]
        reached = (forward - log_likelihood[:, None]).masked_fill(~is_possible, NEVER)
        beyond = F.pad(backward, (0, 1, 0, 0, 0, self.longest), value=NEVER)
        blanks = [
            torch.logaddexp(beyond[d : d + self.time, :, :-1] + self.blanks[:, k], ends)
            for k, (d, ends) in enumerate(self._ends())
        ]
        labels = [
            beyond[d : d + self.time, :, 1:] + self.labels[:, k]
            for k, d in enumerate(self.label_durations)
        ]
        if self.staying is not None:
            labels.insert(0, beyond[: self.time, :, 1:] + self.staying)
        of_blanks, of_labels = (
            torch.exp(reached + torch.stack(arcs)).transpose(1, 2) for arcs in (blanks, labels)
        )
        return of_blanks, of_labels

    def _ends(self) -> list[tuple[int, Float[Tensor, "frames batch places"]]]:
        """Return each blank duration, and its arcs that lead to the end exactly."""
        is_last = self.tokens == self.num_tokens
        return [
            (d, self.blanks[:, k].masked_fill(~(is_last & self._leads_to_end(d)), NEVER))
            for k, d in enumerate(self.blank_durations)
        ]

    def _leads_to_end(self, duration: int) -> Tensor:
        return self.frames + duration == self.num_frames[:, None]

    def _ending(self) -> Float[Tensor, "frames batch places"]:
        return torch.stack([ends for _, ends in self._ends()]).logsumexp(0)

    def _before(self) -> Float[Tensor, "frames batch places"] | None:
        """Return c of each frame: labels of duration 0 of all places before."""
        if self.staying is None:
            return None
        return F.pad(self._finite_staying().cumsum(-1)[..., :-1], (1, 0))

    def _after(self) -> Float[Tensor, "frames batch places"] | None:
        """Return the same of a place and all places after it."""
        if self.staying is None:
            return None
        return self._finite_staying().flip(-1).cumsum(-1).flip(-1)

    def _finite_staying(self) -> Float[Tensor, "frames batch places"]:
        # Where no label leaves, a 0 opens places from which no path comes to the end. It keeps sums
        # exact: 1e30 would swallow what is added to it.
        assert self.staying is not None
        return self.staying.masked_fill(self.staying <= NEVER, 0.0)


def _rows(
    sums: Float[Tensor, "frames batch places"], row: int, durations: Sequence[int], sign: int
) -> Float[Tensor, "durations batch places"]:
    """Return the rows that lie these durations after a row, or before it; no index is copied."""
    if not durations:
        return sums[:0]
    return torch.stack([sums[row + sign * duration] for duration in durations])


def _delayed(
    arcs: Float[Tensor, "frames durations batch places"], durations: Sequence[int]
) -> Float[Tensor, "frames durations batch places"]:
    """Return arcs by the frame that they lead to."""
    time = len(arcs)
    delayed = [
        F.pad(arcs[: max(0, time - d), k], (0, 0, 0, 0, min(d, time), 0), value=NEVER)
        for k, d in enumerate(durations)
    ]
    return torch.stack(delayed, 1) if delayed else arcs


def _cumulative(
    values: Float[Tensor, "batch places"], offsets: Float[Tensor, "batch places"] | None
) -> Float[Tensor, "batch places"]:
    """Return c + LSE over the places up to each of (value - c)."""
    return values if offsets is None else offsets + torch.logcumsumexp(values - offsets, -1)
