"""Makes utterances of cuts: one for each supervision, from its begin to its end.

Audio outside of every supervision has no transcript and is left out, be it in a recording, a cut or
an archive of Shar. A mix is the exception: its one supervision counts for all of it, since silence
or noise was put around the speech on purpose.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import SupervisionSegment
from lhotse.cut import Cut, MixedCut, MonoCut, MultiCut
from lhotse.utils import compute_num_samples, fastcopy

from core.data.audio_decoding import CorpusError

ROUNDING_SECONDS = 0.005
"""Times that are written with two digits after the point are off by so much at most."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Notes:
    """Collects warnings about a manifest, to log each once however many lines it concerns."""

    file: Path
    clipped: int = 0
    first_clipped: str = ""
    others: list[str] = field(default_factory=list)

    def clip(self, name: str) -> None:
        """Counts an utterance that lies partly outside of its audio."""
        self.clipped += 1
        self.first_clipped = self.first_clipped or name

    def write(self) -> None:
        """Logs what was counted."""
        for line in self.others:
            log.warning("%s", line)
        if self.clipped:
            log.warning(
                "`%s` has %d utterances that begin before their audio or end after it, such as"
                " `%s`; they are clipped to it.",
                *(self.file, self.clipped, self.first_clipped),
            )


def one_utterance_a_cut(cuts: Iterable[Cut], notes: Notes) -> Iterator[Cut]:
    """Yields an utterance for each supervision; a cut without any passes as it is.

    Args:
        cuts: checked ones.
        notes: where what is clipped is counted.

    Raises:
        CorpusError: naming a supervision of which no audio is left, or whose channel cannot be.
    """
    for cut in cuts:
        if isinstance(cut, MixedCut):
            yield from _of_mix(cut, notes)
        elif not cut.supervisions:
            yield cut
        else:
            for spoken in cut.supervisions:
                yield _of_data(cut, spoken, notes)


def _of_data(cut: MonoCut | MultiCut, spoken: SupervisionSegment, notes: Notes) -> MonoCut:
    begin, end = _clip_to_audio(cut, spoken, notes)
    channel = _channel(cut, spoken, notes)
    # One supervision that spans the cut: the cut and its name stay as they are.
    is_whole = begin <= ROUNDING_SECONDS and end >= cut.duration - ROUNDING_SECONDS
    if len(cut.supervisions) == 1 and is_whole:
        if isinstance(cut, MonoCut):
            return cut
        name, start, duration = cut.id, cut.start, cut.duration
    else:
        # As lhotse counts: the length is rounded by itself, and ends with the cut at the latest.
        # Example: 0.25 s from 0.5 s on, of a cut that begins at 1 s, 16 kHz: start (16,000 + 8,000)
        # / 16,000 = 1.5 s, duration 4,000 / 16,000 = 0.25 s.
        rate = cut.sampling_rate
        first, length, whole = (
            compute_num_samples(seconds, rate) for seconds in (begin, end - begin, cut.duration)
        )
        name = spoken.id
        start = (compute_num_samples(cut.start, rate) + first) / rate
        duration = min(length, whole - first) / rate
    return MonoCut(
        id=name,
        start=start,
        duration=duration,
        channel=channel,
        supervisions=[fastcopy(spoken, start=0.0, duration=duration, channel=channel)],
        recording=cut.recording,
    )


def _of_mix(cut: MixedCut, notes: Notes) -> Iterator[Cut]:
    if len(cut.supervisions) <= 1:
        yield cut
        return
    for spoken in cut.supervisions:
        begin, end = _clip_to_audio(cut, spoken, notes)
        piece = cut.truncate(offset=begin, duration=end - begin)
        # A mix has no supervisions of its own, only those of its tracks, and a piece can hold parts
        # of several: all go, and the one that counts is given to its first track of audio.
        piece = piece.drop_supervisions().with_id(spoken.id)
        supervision = fastcopy(spoken, start=0.0, duration=piece.duration)
        audible = piece.first_non_padding_cut if isinstance(piece, MixedCut) else piece
        audible.supervisions = [supervision]
        yield piece


def _clip_to_audio(cut: Cut, spoken: SupervisionSegment, notes: Notes) -> tuple[float, float]:
    """Begin and end in seconds within the cut."""
    begin, end = max(0.0, spoken.start), min(cut.duration, spoken.start + spoken.duration)
    # Less than one sample.
    if (end - begin) * cut.sampling_rate < 1:
        raise CorpusError(
            f"`{spoken.id}` of `{notes.file}` must lie within its audio of {cut.duration:g} s, but"
            f" is from {spoken.start:g} s to {spoken.start + spoken.duration:g} s instead."
        )
    over = max(begin - spoken.start, spoken.start + spoken.duration - end)
    if over > ROUNDING_SECONDS:
        notes.clip(spoken.id)
    return begin, end


def _channel(cut: MonoCut | MultiCut, spoken: SupervisionSegment, notes: Notes) -> int:
    """Returns the channel to read: a mono cut's own, or the one that the supervision names."""
    named = spoken.channel if isinstance(spoken.channel, list) else [spoken.channel]
    there = [cut.channel] if isinstance(cut, MonoCut) else list(cut.channel)
    if isinstance(cut, MonoCut):
        named = there
    if len(set(named)) > 1:
        raise CorpusError(
            f"`{spoken.id}` of `{notes.file}` must name one channel, but names"
            f" {', '.join(map(str, named))} instead; give each channel a supervision of its own,"
            " or mix the recording down."
        )
    available = [channel for channel in there if channel in (cut.recording.channel_ids or there)]
    if named[0] not in available:
        raise CorpusError(
            f"`{spoken.id}` of `{notes.file}` must name a channel of its recording"
            f" ({', '.join(map(str, cut.recording.channel_ids))}), but names {named[0]} instead."
        )
    return int(named[0])
