"""The corpus that a command's options name."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from core.config.trial import Case, CorpusConfig
from core.files import temporary_folder
from sweep.config.paths import absolute_corpus, check_corpus

if TYPE_CHECKING:  # torch takes seconds that a table should not
    pass


def corpus_config(name: str, root: str, case: Case = "as_written") -> CorpusConfig:
    """A corpus named on the command line."""
    corpus = CorpusConfig.parse(absolute_corpus({"name": name, "root": root, "case": case}))
    check_corpus(corpus)
    return corpus


def corpus_folder() -> TemporaryDirectory[str]:
    """Where the demo's speech is spoken to, if that is the corpus."""
    return temporary_folder("speech")
