import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from core.corpora.text import BLANK
from core.deploy.shortening import shortened

TOKENS = 4
PATHS = st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=12)


def said(path):
    """By CTC: repeats are one, blanks are none."""
    merged = torch.unique_consecutive(torch.tensor(path, dtype=torch.long)).tolist()
    return [token for token in merged if token != BLANK]


def log_probabilities(paths):
    """Of which these are the best; padded by a token that nobody may read."""
    time = max(map(len, paths))
    best = torch.tensor([path + [1] * (time - len(path)) for path in paths])
    return (5.0 * F.one_hot(best, TOKENS)).log_softmax(-1)


def best_of(paths, read):
    lengths = torch.tensor([len(path) for path in paths])
    found = shortened(log_probabilities(paths), lengths, torch.tensor(read)).argmax(-1)
    return [path[:n].tolist() for path, n in zip(found, read, strict=True)]


@given(st.lists(PATHS, min_size=1, max_size=4), st.data())
def test_a_frame_less_says_the_same_where_any_frame_can_be_missed(paths, data):
    read = [len(path) - data.draw(st.integers(0, 1)) for path in paths]

    for path, found, n in zip(paths, best_of(paths, read), read, strict=True):
        rest = [path[:i] + path[i + 1 :] for i in range(len(path))]
        if n == len(path):
            assert found == path
        elif any(said(each) == said(path) for each in rest):
            assert said(found) == said(path)
        else:
            assert found == path[:-1]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ([1, 0, 2, 0], [1, 0, 2]),
        ([0, 0, 1, 2], [0, 1, 2]),
        ([1, 0, 1, 2, 2, 3], [1, 0, 1, 2, 3]),
        ([1, 0, 2, 3], [1, 2, 3]),
        ([1, 0, 1], [1, 0]),
    ],
)
def test_the_last_frame_that_is_not_missed_goes(path, found):
    assert best_of([path], [len(path) - 1]) == [found]
