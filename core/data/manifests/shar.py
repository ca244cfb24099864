"""Shar folders: shards of cuts with archives of their audio, read one utterance at a time.

SPLIT/cuts.000000.jsonl.gz has a line a cut, SPLIT/recording.000000.tar in the same order its audio
and, after that, one JSON object that describes it. Other fields that lhotse can keep so (features,
arrays, other recordings) are not opened.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import soundfile
from lhotse import Recording
from lhotse.cut import Cut, MixedCut
from lhotse.utils import fastcopy

from core.data.audio_decoding import CorpusError
from core.data.manifests.json_lines import Line, parse_object, read_lines
from core.data.manifests.recordings import RecordingRecord
from core.data.manifests.records import CutRecord, check, find_audio, read_cut, to_cut, to_recording
from core.data.manifests.segments import Notes, one_utterance_a_cut
from core.data.manifests.sources import NOTHING, Allowed

_MOST_BYTES = 2 << 30
"""Of one utterance's audio."""
_MOST_DESCRIBING = 16 << 20


@dataclass(kw_only=True, slots=True)
class SharCuts:
    """A split's utterances, read anew each time they are asked for."""

    folder: Path
    has_audio: bool
    """Whether archives are opened; else each cut is described alone."""
    allowed: Allowed = NOTHING
    is_quiet: bool = True
    """Whether what is clipped goes unsaid."""

    def __iter__(self) -> Iterator[Cut]:
        """Yields utterances.

        Raises:
            CorpusError: naming the shard or the utterance that cannot be used.
        """
        notes = Notes(file=self.folder)
        yield from one_utterance_a_cut(self._cuts(), notes)
        # Once: the same object is read again in later passes.
        if not self.is_quiet:
            notes.write()
            self.is_quiet = True

    def _cuts(self) -> Iterator[Cut]:
        for shard, archive in find_shards(self.folder):
            cuts = _read_shard(shard, self.allowed, is_shar=archive is not None)
            yield from _with_audio(cuts, archive) if archive and self.has_audio else cuts


def find_shards(folder: Path) -> list[tuple[Path, Path | None]]:
    """Pairs each shard of cuts with its archive; without one where cuts name files.

    Raises:
        CorpusError: naming a shard that is there without the other.
    """
    shards = {_number(file): file for file in sorted(folder.glob("cuts.*.jsonl*"))}
    archives = {_number(file): file for file in sorted(folder.glob("recording.*.tar*"))}
    for number, file in shards.items():
        # Shards without any archive are plain manifests; an archive for some of them is a loss.
        if archives and number not in archives:
            raise CorpusError(
                f"`{file}` must have `recording.{number}.tar` beside it, but has not; the folder"
                " is not whole."
            )
    for number, file in archives.items():
        if number not in shards:
            raise CorpusError(
                f"`{file}` must have `cuts.{number}.jsonl.gz` beside it, but has not; the folder"
                " is not whole."
            )
    return [(file, archives.get(number)) for number, file in shards.items()]


def _number(file: Path) -> str:
    return file.name.split(".")[1]


def _read_shard(shard: Path, allowed: Allowed, *, is_shar: bool) -> Iterator[Cut]:
    """A shard's cuts; audio in an archive has a placeholder."""
    for line in read_lines(shard):
        if is_shar:
            yield to_cut(check(CutRecord, line, allowed=allowed, is_shar=True))
        else:
            yield find_audio(read_cut(line, allowed=allowed), shard.parent)


def _with_audio(cuts: Iterable[Cut], archive: Path) -> Iterator[Cut]:
    recordings = _recordings(archive)
    for cut in cuts:
        name, recording = next(recordings, (None, None))
        if name != cut.id:
            raise CorpusError(
                f"`{archive}` must hold the audio of `{cut.id}`, but holds"
                f" {'no more' if name is None else f'that of `{name}`'} instead; the folder is"
                " not whole."
            )
        if recording is None:
            raise CorpusError(f"`{cut.id}` of `{archive}` must have audio, but has none instead.")
        yield fastcopy(cut, recording=_check_audio(recording, cut, archive))
    if (more := next(recordings, None)) is not None:
        raise CorpusError(
            f"`{archive}` must hold the audio of its cuts, but holds that of `{more[0]}`, too; the"
            " folder is not whole."
        )


def _recordings(archive: Path) -> Iterator[tuple[str, Recording | None]]:
    """Each utterance's name and audio."""
    if not archive.is_file():
        raise CorpusError(f"`{archive}` must be a regular file, but is something else instead.")
    try:
        # `|` reads forwards only, so that memory holds one member at a time; `*` takes any packing.
        with tarfile.open(archive, "r|*") as opened:
            members = _members(opened, archive)
            # Members come in pairs: audio, and the object that describes it.
            for path, audio in members:
                description = next(members, None)
                if description is None:
                    raise CorpusError(f"`{archive}` must describe `{path}`, but ends with it.")
                yield path.with_suffix("").as_posix(), _recording(archive, audio, *description)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(
            f"`{archive}` must be a readable tar file, but is not ({reason})."
        ) from None


def _members(
    opened: tarfile.TarFile, archive: Path
) -> Iterator[tuple[PurePosixPath, bytes | None]]:
    """Contents in order; None of a placeholder."""
    for member in opened:
        path = PurePosixPath(member.name)
        if path.suffix in (".nodata", ".nometa"):
            yield path, None
            continue
        most = _MOST_DESCRIBING if path.suffix == ".json" else _MOST_BYTES
        content = opened.extractfile(member) if member.isreg() and member.size <= most else None
        if content is None:
            raise CorpusError(
                f"`{archive}` must hold files of at most {most >> 20} MiB,"
                f" but `{member.name!r:.100}` is none."
            )
        yield path, content.read()


def _recording(
    archive: Path, audio: bytes | None, path: PurePosixPath, description: bytes | None
) -> Recording | None:
    if audio is None or description is None:
        return None
    try:
        values = parse_object(description)
    except ValueError as error:
        raise CorpusError(f"`{archive}`, `{path}`, must be {error}.") from None
    line = Line(file=archive / path, number=1, values=values)
    recording = to_recording(check(RecordingRecord, line, is_shar=True))
    if len(recording.sources) != 1 or recording.sources[0].type != "shar":
        raise CorpusError(f"`{archive}`, `{path}`, must have one source of type `shar`.")
    # `shar` stands for audio that a reader fills in; from here on lhotse decodes these bytes.
    recording.sources[0].type, recording.sources[0].source = "memory", audio
    return recording


def _check_audio(recording: Recording, cut: Cut, archive: Path) -> Recording:
    """Its audio as it is, whatever the archive says of channels and rate."""
    assert not isinstance(cut, MixedCut)
    try:
        info = soundfile.info(io.BytesIO(recording.sources[0].source))
    except soundfile.LibsndfileError as error:
        raise CorpusError(
            f"`{cut.id}` of `{archive}` must be readable audio, but is not ({error})."
        ) from None
    if info.samplerate != recording.sampling_rate or info.channels != recording.num_channels:
        raise CorpusError(
            f"`{cut.id}` of `{archive}` must have {recording.num_channels} channels of"
            f" {recording.sampling_rate} samples a second, but has {info.channels} of"
            f" {info.samplerate} instead."
        )
    return recording
