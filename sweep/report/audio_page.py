"""The listening page: an utterance to play, and what teacher and pruned model heard in it. Pure.

One block of HTML, its audio inside, that stands in the front's page or on a page of its own. It
needs no network; what to play and to read was gathered by sweep/report/audio_samples.py.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from core.evaluation.wer import Aligned, align_words

ItemT = TypeVar("ItemT")

SHOWN = 12
"""Utterances on the page."""
DIFFERING = 8
"""Of these, at most so many in which a pruned model hears something else than the teacher."""
MOST_MODELS = 12
"""Models on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A candidate for the page."""

    id: str
    flac: bytes
    seconds: float
    reference: str
    """The reference: a transcript, or what the teacher heard."""
    teacher: str
    pruned: tuple[str, ...]
    """What each model heard, in their order."""

    @property
    def is_disputed(self) -> bool:
        return any(text != self.teacher for text in self.pruned)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedModel:
    """A pruned model."""

    name: str
    """Of its trial: `7`, or `7.2`."""
    wer: float
    """On all of dev, as a fraction."""
    flops_sparsity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioComparison:
    """All that the page shows."""

    listeners: tuple[ComparedModel, ...] = ()
    utterances: tuple[Utterance, ...] = ()
    teacher_wer: float | None = None
    wer_name: str = "WER"
    silence: str = ""
    """Why there is nothing to hear, if there is nothing."""

    @property
    def names(self) -> frozenset[str]:
        """Of the points that can be listened to."""
        return frozenset(listener.name for listener in self.listeners if not self.silence)


def evenly(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """At most so many, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def select_utterances(candidates: Sequence[Utterance]) -> list[Utterance]:
    """A page of them in their order: some that are disputed, and some that are not."""
    disputed = [place for place, each in enumerate(candidates) if each.is_disputed]
    agreed = [place for place, each in enumerate(candidates) if not each.is_disputed]
    count = max(DIFFERING, SHOWN - len(agreed))
    chosen = evenly(disputed, count)
    chosen += evenly(agreed, SHOWN - len(chosen))
    return [candidates[place] for place in sorted(chosen)]


def block(listening: AudioComparison) -> str:
    """The HTML, with its style before it and its script behind."""
    if listening.silence:
        told = f"<p>There is nothing to hear: {html.escape(listening.silence)}</p>"
        return f'{STYLE}<section id="listening"><h2>{TITLE}</h2>{told}</section>'
    models = "".join(_button(listening, listener) for listener in listening.listeners)
    rows = "".join(_item(listening, place) for place in range(len(listening.utterances)))
    teacher = ""
    if listening.teacher_wer is not None:
        teacher = (
            f" The teacher's {_name(listening)} on all of dev is {_percent(listening.teacher_wer)}."
        )
    return (
        f'{STYLE}<section id="listening"><h2>{TITLE}</h2>'
        f"<p>{EXPLAINED}{teacher}</p>"
        f'<div id="models" role="group" aria-label="Pruned model">{models}</div>'
        f"<ol>{rows}</ol></section>{SCRIPT}"
    )


def page(listening: AudioComparison, *, title: str) -> str:
    """The block as a page of its own."""
    told = html.escape(title)
    return PAGE.format(policy=POLICY, title=told, block=block(listening))


def _button(listening: AudioComparison, listener: ComparedModel) -> str:
    name = html.escape(listener.name)
    return (
        f'<button type="button" data-model="{name}" aria-pressed="false">trial {name}'
        f"<small>{_percent(listener.wer)} {_name(listening)} on dev,"
        f" {100 * listener.flops_sparsity:.0f} % of FLOPs gone</small></button>"
    )


def _item(listening: AudioComparison, place: int) -> str:
    utterance = listening.utterances[place]
    name = html.escape(utterance.id)
    sound = base64.b64encode(utterance.flac).decode()
    reference = "the teacher's text" if listening.wer_name != "WER" else "said"
    heard = "".join(
        f'<tr data-model="{html.escape(listener.name)}" hidden>'
        f"<th>trial {html.escape(listener.name)}</th>{_heard(utterance.reference, text)}</tr>"
        for listener, text in zip(listening.listeners, utterance.pruned, strict=True)
    )
    return (
        f'<li><button type="button" class="play" aria-label="Play utterance {place + 1}, {name}">'
        f'<span aria-hidden="true">&#9654;</span></button>'
        f'<audio preload="metadata" src="data:audio/flac;base64,{sound}"></audio>'
        f"<div><small>{name}, {utterance.seconds:.1f} s</small><table>"
        f"<tr><th>{reference}</th><td>{html.escape(utterance.reference)}</td><td></td></tr>"
        f"<tr><th>teacher</th>{_heard(utterance.reference, utterance.teacher)}</tr>"
        f"{heard}</table></div></li>"
    )


def _heard(said: str, text: str) -> str:
    """Two cells: the words with their errors marked, and how many there are."""
    words = align_words(said, text)
    wrong = sum(word.kind != "equal" for word in words)
    rate = wrong / max(1, len(said.split()))
    told = " ".join(map(_word, words)) or "<i>nothing</i>"
    return f"<td>{told}</td><td class='rate'>{_percent(rate, digits=0)}</td>"


def _word(word: Aligned) -> str:
    said, heard = html.escape(word.reference), html.escape(word.hypothesis)
    match word.kind:
        case "substitute":
            return f'<mark title="said: {said}">{heard}</mark>'
        case "delete":
            return f'<del title="not heard">{said}</del>'
        case "insert":
            return f'<ins title="not said">{heard}</ins>'
        case _:
            return heard


def _name(listening: AudioComparison) -> str:
    return html.escape(listening.wer_name)


def _percent(share: float, *, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


TITLE = "What they hear"
EXPLAINED = (
    "Play an utterance of dev, and read what the teacher and a pruned model heard in it:"
    " <mark>another word</mark>, <del>a word that was not heard</del>,"
    " <ins>a word that was not said</ins>; behind it, the word error rate of the utterance."
    " Those in which they differ were preferred: these errors are no fair sample."
    " Enter or Space plays, the arrow keys go up and down."
)

# Also says which media may be played: those of the page itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; media-src data:"
)

STYLE = """<style>
:root { --ink: #222; --quiet: #666; --line: #e4e4e4; --paper: #fff; --chosen: #0072B2;
  --other: #fbe3c0; --missed: #b3261e; --made: #0b6b3a; }
#listening { color: var(--ink); margin: 2rem 0; }
#listening h2 { font-size: 1.15rem; margin: 0 0 .3rem; }
#listening p { color: var(--quiet); }
#models { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0; }
#models button, #listening .play { font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--quiet); border-radius: .4rem; cursor: pointer; }
#models button { padding: .3rem .6rem; text-align: left; }
#models small { display: block; }
#models button[aria-pressed=true] { border-color: var(--chosen); outline: 2px solid var(--chosen); }
#listening small { color: var(--quiet); }
#listening ol { list-style: none; margin: 0; padding: 0; }
#listening li { display: flex; gap: .9rem; padding: .6rem 0; border-top: 1px solid var(--line); }
#listening .play { flex: none; width: 2.6rem; height: 2.6rem; border-radius: 50%; }
#listening button:focus-visible { outline: 3px solid var(--chosen); outline-offset: 2px; }
#listening li table { border-collapse: collapse; margin: 0; }
#listening li th, #listening li td { border: 0; padding: .1rem .9rem .1rem 0; text-align: left;
  vertical-align: baseline; white-space: normal; font-weight: normal; }
#listening li th { color: var(--quiet); white-space: nowrap; min-width: 5rem; }
#listening .rate { color: var(--quiet); white-space: nowrap; font-variant-numeric: tabular-nums; }
#listening mark { color: inherit; background: var(--other); border-radius: .2rem;
  padding: 0 .15em; }
#listening del { color: var(--missed); }
#listening ins { color: var(--made); text-decoration: underline; }
</style>"""

SCRIPT = """<script>
(() => {
  const block = document.getElementById("listening");
  const models = [...block.querySelectorAll("#models button")];
  const plays = [...block.querySelectorAll(".play")];
  const show = name => {
    if (!models.some(button => button.dataset.model === name)) return false;
    for (const button of models)
      button.setAttribute("aria-pressed", button.dataset.model === name);
    for (const row of block.querySelectorAll("tr[data-model]"))
      row.hidden = row.dataset.model !== name;
    return true;
  };
  const sound = button => button.parentElement.querySelector("audio");
  const draw = () => plays.forEach(button =>
    button.firstElementChild.innerHTML = sound(button).paused ? "&#9654;" : "&#10074;&#10074;");
  for (const button of models) button.onclick = () => show(button.dataset.model);
  for (const button of plays) {
    const audio = sound(button);
    audio.onplay = audio.onpause = audio.onended = draw;
    button.onclick = () => {
      plays.map(sound).filter(other => other !== audio).forEach(other => other.pause());
      if (!audio.paused) return audio.pause();
      audio.currentTime = 0;
      audio.play();
    };
  }
  block.addEventListener("keydown", event => {
    const row = event.target.closest(".play") ? plays : models;
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
    const next = step && row[row.indexOf(event.target) + step];
    if (next) { next.focus(); event.preventDefault(); }
  });
  const named = () => show(decodeURIComponent(location.hash.replace("#trial-", "")));
  if (!named()) show(models[0].dataset.model);
  addEventListener("hashchange", named);
  window.listenTo = name => show(name) && block.scrollIntoView({behavior: "smooth"});
  for (const link of document.querySelectorAll("a[data-listen]"))
    link.onclick = event => { event.preventDefault(); listenTo(link.dataset.listen); };
  const chart = document.getElementById("chart");
  if (chart && chart.on) chart.on("plotly_click", event => {
    const [trial, outcome] = event.points[0].customdata || [];
    if (trial !== undefined) listenTo(outcome ? `${trial}.${outcome}` : `${trial}`);
  });
})();
</script>"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: what they hear</title>
</head>
<body>
<h1>{title}</h1>
{block}
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.2rem auto; max-width: 62rem;
  padding: 0 1.2rem; color: var(--ink); background: var(--paper); }}
h1 {{ font-size: 1.35rem; margin: 0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e6e6; --quiet: #a5a5a5; --line: #3a3a3a;
  --paper: #181818; --chosen: #56B4E9; --other: #5c4210; --missed: #ff8a80; --made: #7fd6a4; }} }}
</style>
</body>
</html>
"""
