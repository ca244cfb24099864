"""Text from outside shows itself, and does nothing else."""

import csv
import io
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.safe_text import LONGEST_CELL, csv_cell, markdown_text, terminal_line, terminal_text

COMMANDS = [
    "\x1b[2J",  # clears the screen
    "\x1b]0;title\x07",
    "\x1b]52;c;cm0gLXJm\x07",  # writes the clipboard
    "\x9b31m",  # the same in one letter of C1
    "one\rtwo",  # writes over what stood there
    "a\x08b",
    "\u202egpj.exe",  # shown from right to left
    "\u2066x\u2069",
    "\ud800",
    "\x00",
]


@pytest.mark.parametrize("text", COMMANDS)
@pytest.mark.parametrize("make_safe", [terminal_line, terminal_text])
def test_what_would_command_a_terminal_is_spelled_out(text, make_safe):
    safe = make_safe(text)

    assert safe.isprintable()
    assert safe.encode("utf-8")
    assert safe != text


@pytest.mark.parametrize(
    "text", ["one\ntwo\tthree", "a\u00a0b\u3000c", "\u0645\u06cc\u200c\u062e", "größer"]
)
def test_text_of_any_language_is_printed_as_it_is(text):
    assert terminal_text(text) == text


@settings(derandomize=True, database=None)
@given(st.text())
def test_a_terminal_gets_printable_letters_lines_and_spaces_only(text):
    assert terminal_line(text).isprintable()
    control = {chr(c) for c in (*range(32), *range(0x7F, 0xA0))} - {"\n", "\t"}
    assert control.isdisjoint(terminal_text(text))


class Reader(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


MARKDOWN = [
    "![x](http://127.0.0.1/x.png)",
    "[click](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "a | b | c",
    "`code` **bold** _this_ __that__",
    "one\n\n# two",
    "&lt;b&gt;",
    "![][a]\n\n[a]: http://127.0.0.1/x",
    "\\![x](y)",
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_shows_exactly_the_text(text):
    reader = Reader()
    reader.feed(MarkdownIt("commonmark").enable("table").render(f"x {markdown_text(text)}"))

    assert [tag for tag, _ in reader.tags] == ["p"]
    assert reader.text.strip() == "x " + " ".join(text.split())


@settings(derandomize=True, database=None)
@given(st.text(alphabet="![]()<>`*_|&\\ab:/\n", max_size=40))
def test_no_text_becomes_markup_in_a_table(text):
    table = f"| a | b |\n| --- | --- |\n| x{markdown_text(text)} | y |\n"
    reader = Reader()
    reader.feed(MarkdownIt("commonmark").enable("table").render(table))

    tags = [tag for tag, _ in reader.tags]
    assert tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]


def test_a_cell_of_markdown_stays_short():
    assert len(markdown_text("word " * 10_000)) <= LONGEST_CELL


@pytest.mark.parametrize("value", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1"])
def test_a_spreadsheet_reads_text_not_a_formula(value):
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(value)])

    ((read,),) = csv.reader(io.StringIO(file.getvalue()))
    assert read == f"'{value}"


@pytest.mark.parametrize("value", [-1.5, 3, None, "text", "", "a=b", True])
def test_numbers_and_plain_text_stay_as_they_are(value):
    assert csv_cell(value) is value
