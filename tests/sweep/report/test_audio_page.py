"""The listening page: which utterances, which marks, and a real browser that plays them."""

import html
import io
import json
import re

import numpy as np
import pytest
import soundfile
from made_outcomes import make_records

from core.evaluation.wer import align_words, word_errors
from sweep.report.audio_page import (
    DIFFERING,
    SHOWN,
    AudioComparison,
    ComparedModel,
    Utterance,
    block,
    page,
    select_utterances,
)
from sweep.report.front_files import write_front

# Plays by the keyboard and changes the model, as a person would; notes what comes of it.
PROBE = """<pre id="told"></pre><script>
const refused = [];
document.addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
addEventListener("load", async () => {
  const plays = [...document.querySelectorAll(".play")];
  const audios = [...document.querySelectorAll("audio")];
  const until = test => new Promise(done => {
    const look = () => test() ? done() : setTimeout(look, 20);
    look();
  });
  await until(() => audios.every(audio => audio.readyState >= 1));
  const durations = audios.map(audio => audio.duration);
  plays[0].focus();
  plays[0].dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
  const focused = plays.indexOf(document.activeElement);
  const shown = () => [...document.querySelectorAll("tr[data-model]:not([hidden])")]
    .map(row => row.textContent);
  const first = shown();
  document.querySelectorAll("#models button")[1].click();
  const second = shown();
  listenTo("7");
  const third = shown();
  const loaded = performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith("data:"));
  document.getElementById("told").textContent =
    JSON.stringify({durations, focused, first, second, third, loaded, refused});
});
</script></body>"""


def sound(seconds=0.3):
    file = io.BytesIO()
    wave = 0.2 * np.sin(np.arange(int(16000 * seconds)) / 6)
    soundfile.write(file, wave, 16000, format="FLAC")
    return file.getvalue()


def utterance(number, *, said="turn it on", teacher=None, pruned=("turn it on", "turn it on")):
    return Utterance(
        id=f"dev-{number}",
        flac=sound(0.3 + 0.1 * number),
        seconds=0.3 + 0.1 * number,
        reference=said,
        teacher=said if teacher is None else teacher,
        pruned=pruned,
    )


MODELS = (
    ComparedModel(name="7", wer=0.08, flops_sparsity=0.8),
    ComparedModel(name="3.1", wer=0.21, flops_sparsity=0.95),
)


def made(*utterances, **words):
    return AudioComparison(models=MODELS, utterances=utterances, teacher_wer=0.05, **words)


@pytest.mark.parametrize(
    ("heard", "kinds"),
    [
        ("turn it on", ["equal", "equal", "equal"]),
        ("turn them on", ["equal", "substitute", "equal"]),
        ("turn on", ["equal", "delete", "equal"]),
        ("turn it it on", ["equal", "insert", "equal", "equal"]),
        ("", ["delete", "delete", "delete"]),
    ],
)
def test_words_are_marked_by_what_became_of_them(heard, kinds):
    found = align_words("turn it on", heard)

    assert sorted(word.kind for word in found) == sorted(kinds)
    assert " ".join(word.reference for word in found if word.reference) == "turn it on"
    assert " ".join(word.hypothesis for word in found if word.hypothesis) == heard
    assert sum(w.kind != "equal" for w in found) == word_errors(["turn it on"], [heard]).errors[0]


@pytest.mark.parametrize(("disputed", "agreed"), [(0, 3), (3, 40), (40, 40), (40, 2), (0, 40)])
def test_a_page_has_a_dozen_and_some_of_them_are_disputed(disputed, agreed):
    made_up = [
        *(utterance(i, pruned=("turn it on", "turn it off")) for i in range(disputed)),
        *(utterance(disputed + i) for i in range(agreed)),
    ]

    chosen = select_utterances(made_up)

    assert len(chosen) == min(SHOWN, disputed + agreed)
    assert sum(each.is_disputed for each in chosen) >= min(disputed, DIFFERING)
    assert [int(each.id[4:]) for each in chosen] == sorted(int(each.id[4:]) for each in chosen)


def test_names_and_words_cannot_command_the_page():
    evil = utterance(0, said="<script>x</script> on", teacher="</td> on", pruned=("<b>", "&amp;"))

    told = block(made(evil))

    assert "<script>x" not in told
    assert "</td> on" not in told
    assert "<b>" not in told


def test_without_sound_the_page_says_why():
    told = page(AudioComparison(unavailable_reason="`<x>` is gone."), title="a & b")

    assert "There is nothing to play: `&lt;x&gt;` is gone." in told
    assert "<audio" not in told


def test_against_the_teacher_it_is_not_called_a_transcript():
    told = block(made(utterance(0), wer_name="WER against the teacher"))

    assert "<th>the teacher&#39;s text</th>" in told
    assert "<th>said</th>" not in told


@pytest.fixture
def told_of(browse, tmp_path):
    def probed(text):
        file = tmp_path / "probed.html"
        file.write_text(text.replace("</body>", PROBE), "utf-8")
        elements = browse(file.as_uri() + "#trial-3.1")
        return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', elements)[1]))

    return probed


@pytest.mark.slow
def test_a_browser_plays_and_tells_without_any_network(told_of):
    differing = utterance(1, pruned=("turn it off", "burn it on"))

    told = told_of(page(made(utterance(0), differing), title="demo"))

    assert told["durations"] == pytest.approx([0.3, 0.4], abs=0.01)
    assert told["focused"] == 1
    assert told["first"] == told["second"] == ["trial 3.1turn it on0 %", "trial 3.1burn it on33 %"]
    assert told["third"] == ["trial 7turn it on0 %", "trial 7turn it off33 %"]
    assert told["loaded"] == told["refused"] == []


@pytest.mark.slow
def test_the_fronts_page_leads_to_what_its_points_hear(told_of, tmp_path):
    records = make_records(10)
    files = write_front(records, tmp_path, title="demo")
    assert "data-listen" not in files.html.read_text("utf-8")

    points = [record.number for record in records]
    models = tuple(ComparedModel(name=str(n), wer=0.1, flops_sparsity=0.5) for n in points)
    heard = utterance(0, pruned=("turn it on",) * len(points))
    audio = AudioComparison(models=models, utterances=(heard,))
    text = write_front(records, tmp_path, title="demo", audio=audio).html.read_text("utf-8")

    links = re.findall(r'<a href="#trial-(\d+)" data-listen="\1">\1, listen</a>', text)
    assert links
    assert told_of(text)["refused"] == []
