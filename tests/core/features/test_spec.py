"""How many frames are left on the way to the residual stream, by every front end."""

import pytest
import torch

from core.conformer.model import Conformer
from core.features.spec import FrontendSpec
from core.testing import FRONTEND_SPECS, SHAPE, with_frontend


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_frames_are_counted_as_the_convolutions_leave_them(kind):
    heard = FRONTEND_SPECS[kind]
    model = Conformer(with_frontend(SHAPE, kind))
    for num_frames in range(heard.shortest, 40):
        features = torch.zeros(1, num_frames, 80)

        left = model.frontend(features, torch.tensor([num_frames])).shape[1]

        assert left == heard.output_frames(num_frames) > 0


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_numbers_and_tensors_of_them_are_counted_alike(kind):
    heard, numbers = FRONTEND_SPECS[kind], range(50)

    counted = heard.output_frames(torch.tensor(numbers))

    assert counted.tolist() == [heard.output_frames(number) for number in numbers]
    assert heard.output_frames(heard.shortest - 1) == 0


def test_a_frontend_spec_survives_plain_values():
    for heard in FRONTEND_SPECS.values():
        assert FrontendSpec.from_plain(heard.to_plain()) == heard
