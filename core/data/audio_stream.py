"""An audio file read in pieces, so that an hour of it needs no more memory than a minute.

Shapes: N samples.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from core.data.audio import check_rate, read_header, resample_to_16khz
from core.data.audio_decoding import Faults, open_forward, truncated_error, unreadable_error
from core.features.kaldi import SAMPLE_RATE_HZ

ENDINGS = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
)
"""By which audio is known in a folder."""
_CONTEXT_SECONDS = 0.05
"""Of speech around a piece: far more than the filter that changes the rate sees."""


class AudioStream:
    """A file as samples in [-1, 1] at 16 kHz, piece after piece, each beginning no earlier.

    Pieces are read forwards alone: a seek would let some decoders begin anew, and sound different.
    """

    def __init__(self, file: Path, *, resample: bool = True) -> None:
        """Look at a file's header.

        Raises:
            CorpusError: if it cannot be decoded, or has another rate and `resample` is false.
        """
        header = read_header(file)
        check_rate(file, header.sample_rate_hz, resample=resample)
        self.file, self.rate_hz = file, header.sample_rate_hz
        self._length = header.num_samples
        # Rounded up, as the resampler does: 4411 samples at 44.1 kHz are 1601 at 16 kHz.
        self.num_samples = math.ceil(header.num_samples * SAMPLE_RATE_HZ / header.sample_rate_hz)
        self._held, self._held_from = torch.zeros(0), 0
        self._faults = Faults()

    @property
    def seconds(self) -> float:
        return self._length / self.rate_hz

    def __enter__(self) -> "AudioStream":  # noqa: PYI034  # beartype refuses Self
        self._stack = ExitStack()
        self._opened = self._stack.enter_context(open_forward(self.file))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def report_faults(self) -> None:
        """Log which of the samples read so far are not numbers; they were read as 0.

        Raises:
            CorpusError: if too many of them are.
        """
        self._faults.report(self.file, self.rate_hz)

    def read(self, begin: int, end: int) -> Float[Tensor, " samples"]:
        """Samples at 16 kHz from `begin` up to `end`, as they are in the whole file.

        Raises:
            CorpusError: if the file cannot be decoded so far.
        """
        if self.rate_hz == SAMPLE_RATE_HZ:
            return self._at_own_rate(begin, min(end, self._length))
        # So many samples at each rate last equally long: pieces begin where both rates have one.
        # At 44.1 kHz 441 of theirs are 160 of ours: sample 1000 of ours lies in group 6, which
        # begins at 960 of ours and 2646 of theirs. `context` counts groups, too: 5 last 0.05 s.
        common = math.gcd(self.rate_hz, SAMPLE_RATE_HZ)
        theirs, ours = self.rate_hz // common, SAMPLE_RATE_HZ // common
        context = math.ceil(_CONTEXT_SECONDS * self.rate_hz / theirs)
        first = max(0, begin // ours - context)
        last = math.ceil(end / ours) + context
        piece = self._at_own_rate(first * theirs, min(last * theirs, self._length))
        return resample_to_16khz(piece, self.rate_hz)[begin - first * ours : end - first * ours]

    def _at_own_rate(self, begin: int, end: int) -> Float[Tensor, " samples"]:
        # `_held` holds the file's samples from `_held_from` on, up to the last that was decoded.
        # Pieces overlap by the context of the filter, so the end of one piece is used again by the
        # next.
        assert begin >= self._held_from, "pieces are read forwards"
        missing = end - self._held_from - len(self._held)
        if missing > 0:
            self._held = torch.cat([self._held, self._decode(missing)])
        # Samples before `begin` are dropped, so memory holds a piece, however long the file is.
        self._held = self._held[begin - self._held_from :]
        self._held_from = begin
        return self._held[: end - begin]

    def _decode(self, count: int) -> Float[Tensor, " samples"]:
        try:
            samples = self._faults.mend(self._opened.read(count, dtype="float32"))
        except soundfile.LibsndfileError as error:
            raise unreadable_error(self.file, error) from error
        if len(samples) < count:
            held = (self._held_from + len(self._held) + len(samples)) / self.rate_hz
            raise truncated_error(self.file, self.seconds, held)
        return torch.from_numpy(samples)
