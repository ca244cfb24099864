import torch
from hypothesis import given
from hypothesis import strategies as st

from core.decoders.ctc import BLANK, greedy

VOCABULARY = 4
paths = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=8), min_size=1, max_size=4)


def spiky(path_of_each: list[list[int]], *, longest: int = 10) -> torch.Tensor:
    """Distributions whose best path is the given one; padding prefers token 3."""
    scores = torch.zeros(len(path_of_each), longest, VOCABULARY)
    scores[:, :, 3] = 1.0
    for row, path in zip(scores, path_of_each, strict=True):
        for frame, token in zip(row, path, strict=False):
            frame[:] = 0.0
            frame[token] = 1.0
    return scores.log_softmax(-1)


def collapsed(path: list[int]) -> list[int]:
    kept = [token for i, token in enumerate(path) if i == 0 or token != path[i - 1]]
    return [token for token in kept if token != BLANK]


@given(paths)
def test_the_best_path_is_collapsed_and_padding_is_not_read(path_of_each):
    num_frames = torch.tensor([len(path) for path in path_of_each])

    assert greedy(spiky(path_of_each), num_frames) == [collapsed(path) for path in path_of_each]


def test_a_blank_between_keeps_two_equal_tokens():
    assert greedy(spiky([[2, 2, 0, 2]]), torch.tensor([4])) == [[2, 2]]


def test_no_frames_give_no_tokens():
    assert greedy(torch.zeros(2, 0, VOCABULARY), torch.tensor([0, 0])) == [[], []]
