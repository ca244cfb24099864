"""How many frames are left on the way to the residual stream, by every front end."""

import pytest
import torch

from core.conformer.model import Conformer
from core.features.spec import FrontendSpec
from core.testing import FRONTEND_SPECS, SHAPE, with_frontend


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_frames_are_counted_as_the_convolutions_leave_them(kind):
    spec = FRONTEND_SPECS[kind]
    model = Conformer(with_frontend(SHAPE, kind))
    for num_frames in range(spec.shortest, 40):
        features = torch.zeros(1, num_frames, 80)

        num_outputs = model.frontend(features, torch.tensor([num_frames])).shape[1]

        assert num_outputs == spec.output_frames(num_frames) > 0


@pytest.mark.parametrize("kind", FRONTEND_SPECS)
def test_numbers_and_tensors_of_them_are_counted_alike(kind):
    spec, numbers = FRONTEND_SPECS[kind], range(50)

    counted = spec.output_frames(torch.tensor(numbers))

    assert counted.tolist() == [spec.output_frames(number) for number in numbers]
    assert spec.output_frames(spec.shortest - 1) == 0


def test_a_frontend_spec_survives_plain_values():
    for spec in FRONTEND_SPECS.values():
        assert FrontendSpec.from_plain(spec.to_plain()) == spec
