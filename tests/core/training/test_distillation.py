"""Law 7, distillation's part: a model distilled from itself costs nothing."""

import pytest
import torch

from core.config.trial import DistillationConfig
from core.conformer.masking import fold, gated_forward, kept_unit_indices, named_tensors
from core.conformer.output import Output
from core.decoders.ctc import ctc_loss
from core.pruning.extraction import clone, extract
from core.testing import deeper, ragged_speech, random_mask, small_model, with_transducer
from core.training.distillation import (
    Distillation,
    Student,
    logit_loss,
    ordered_matches,
    same_blocks,
    target_layers,
)


def all_of(blocks):
    return torch.ones(blocks, dtype=torch.bool)


@pytest.mark.parametrize("matching", ["ordered", "fixed"])
def test_distilling_a_model_from_itself_costs_nothing(matching):
    model = small_model(shape=deeper(4))
    distillation = Distillation(clone(model), DistillationConfig(matching=matching, layers=2))
    features, num_frames = ragged_speech(61, 40)
    student = Student(
        output=model(features, num_frames),
        width=torch.arange(16),
        is_active=all_of(4),
    )

    losses = distillation.losses(features, num_frames, student)

    assert losses["logit"].item() == pytest.approx(0, abs=1e-6)
    assert losses["layer"].item() == pytest.approx(0, abs=1e-10)


def test_a_narrower_student_is_compared_through_the_columns_it_has():
    model = small_model(shape=deeper(2))
    mask = {"width": random_mask(model.axes(), "binary")["width"]}
    distillation = Distillation(clone(model), DistillationConfig())
    features, num_frames = ragged_speech(61, 40)
    output = gated_forward(
        model, features, num_frames, fold(named_tensors(model), model.axes(), mask)
    )
    student = Student(
        output=output,
        width=kept_unit_indices(mask["width"]),
        is_active=all_of(2),
    )

    losses = distillation.losses(features, num_frames, student)
    losses["layer"].backward()

    assert losses["layer"].item() > 0
    gradient = distillation.projection.weight.grad.abs().sum(0)
    assert torch.equal(gradient > 0, mask["width"] > 0)


def test_the_teacher_neither_learns_nor_leaves_evaluation_mode():
    distillation = Distillation(small_model(), DistillationConfig()).train()

    assert not any(p.requires_grad for p in distillation.teacher.parameters())
    assert not any(m.training for m in distillation.teacher.modules())
    assert distillation.projection.training


@pytest.mark.parametrize("kind", ["ctc", "lstm tdt"])
def test_a_teacher_of_half_precision_teaches_nearly_the_same(kind):
    shape = deeper(2) if kind == "ctc" else with_transducer(deeper(2), kind)
    model, teacher = small_model(0, shape=shape), small_model(1, shape=shape)
    features, num_frames = ragged_speech(61, 40)
    tokens, num_tokens = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    output = model(features, num_frames, tokens=tokens)
    student = Student(output=output, width=None, is_active=all_of(2))

    single, half = (
        Distillation(clone(teacher), DistillationConfig(teacher_precision=precision)).losses(
            features, num_frames, student, transcripts=(tokens, num_tokens)
        )
        for precision in ("fp32", "bf16")
    )

    for name, loss in single.items():
        torch.testing.assert_close(half[name], loss, rtol=0.05, atol=0.01)


def test_without_weights_there_are_no_terms():
    config = DistillationConfig(logit_weight=0.0, layer_weight=0.0)
    features, num_frames = ragged_speech(61)
    model = small_model()
    student = Student(
        output=model(features, num_frames),
        width=torch.arange(16),
        is_active=all_of(2),
    )

    assert Distillation(model, config).losses(features, num_frames, student) == {}


def test_padding_is_not_distilled():
    model, teacher = small_model(0), small_model(1)
    distillation = Distillation(teacher, DistillationConfig())
    features, num_frames = ragged_speech(61, 40)

    def losses():
        output = model(features, num_frames)
        student = Student(output=output, width=torch.arange(16), is_active=all_of(2))
        return distillation.losses(features, num_frames, student)

    before = losses()
    features[1, 40:] = 100.0
    after = losses()

    for name, loss in before.items():
        torch.testing.assert_close(after[name], loss, rtol=1e-4, atol=1e-5)


def test_matches_keep_the_order_of_layers_and_pass_over_dead_blocks():
    # Rows: taught layers. Columns: student blocks. The nearest of row 1 is block 2; the nearest of
    # row 0 is block 3, which may no longer be taken.
    distances = torch.tensor([[5.0, 4.0, 3.0, 0.0], [9.0, 9.0, 1.0, 2.0]])

    assert matches_of(distances, (True,) * 4) == [(0, 1), (1, 2)]
    assert matches_of(distances, (True, False, True, True)) == [(0, 0), (1, 2)]
    assert matches_of(distances, (True, True, False, True)) == [(0, 1), (1, 3)]
    assert matches_of(distances, (False, False, False, True)) == [(1, 3)]
    assert matches_of(distances, (False,) * 4) == []


def matches_of(distances, is_active):
    """Pairs of a target layer and its block."""
    blocks, is_matched = ordered_matches(distances, torch.tensor(is_active))
    pairs = enumerate(zip(blocks.tolist(), is_matched.tolist(), strict=True))
    return [(target, block) for target, (block, matched) in pairs if matched]


@pytest.mark.parametrize("seed", range(20))
def test_matching_by_tensors_is_the_search_from_the_last_layer_on(seed):
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(3, 6, generator=generator)
    is_active = (torch.rand(6, generator=generator) < 0.6).tolist()

    expected, last = [], 6
    for target in (2, 1, 0):
        candidates = [block for block in range(last) if is_active[block]]
        if not candidates:
            break
        last = min(candidates, key=lambda block: float(distances[target, block]))
        expected.insert(0, (target, last))

    assert matches_of(distances, is_active) == expected


def test_block_to_block_follows_blocks_to_their_new_numbers():
    assert same_blocks([1, 3], None) == [(0, 1), (1, 3)]
    assert same_blocks([1, 3], (0, 1, 2, 3)) == [(0, 1), (1, 3)]
    assert same_blocks([1, 3], (0, 3)) == [(1, 1)]
    assert same_blocks([1, 3], ()) == []


@pytest.mark.parametrize("matching", ["ordered", "fixed"])
@pytest.mark.parametrize("gone", [(1,), (0, 2, 3), (0, 1, 2, 3)])
def test_a_student_of_fewer_blocks_is_taught_by_the_layers_that_it_has(matching, gone):
    model = small_model(shape=deeper(4))
    distillation = Distillation(clone(model), DistillationConfig(matching=matching))
    small = extract(model, {f"blocks.{i}": torch.zeros(1) for i in gone})
    features, num_frames = ragged_speech(61, 40)
    left = tuple(i for i in range(4) if i not in gone)
    student = Student(
        output=small(features, num_frames),
        width=torch.arange(16),
        is_active=all_of(len(left)),
        blocks=left,
    )

    losses = distillation.losses(features, num_frames, student)

    assert (losses["layer"] > 0) == bool(left and left[-1] > min(gone))
    assert losses["logit"] > 0


@pytest.mark.parametrize(
    ("blocks", "layers", "expected"),
    [(12, 4, [2, 5, 8, 11]), (6, 4, [1, 2, 4, 5]), (2, 4, [0, 1]), (5, 1, [4])],
)
def test_taught_layers_are_equally_spaced_and_end_with_the_last(blocks, layers, expected):
    assert target_layers(blocks, layers) == expected


def test_the_logit_term_is_the_divergence_by_definition():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    is_frame = torch.tensor([[True, True, True], [True, False, False]])
    frames = torch.tensor([0, 1, 2, 3])

    actual = logit_loss(student, teacher, frames, 2.0)

    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1)[is_frame].mean()
    torch.testing.assert_close(actual, expected)


def test_ctc_costs_nothing_where_the_words_are_said_and_much_where_others_are():
    # Blank is 0; the second utterance ends after three frames, whatever its logits say later.
    path = torch.tensor([[1, 0, 1, 2, 2], [3, 3, 0, 1, 1]])
    logits = 20 * torch.nn.functional.one_hot(path, 4).float()
    is_frame = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    output = Output(ctc_logits=logits, is_frame=is_frame, hidden=())

    right = ctc_loss(output, torch.tensor([[1, 1, 2], [3, 0, 0]]), torch.tensor([3, 1]))
    wrong = ctc_loss(output, torch.tensor([[1, 1, 3], [3, 0, 0]]), torch.tensor([3, 1]))

    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() > 1


def test_class_weights_shift_what_is_wanted():
    torch.manual_seed(0)
    teacher, weights = torch.randn(2, 3, 5), torch.tensor([0.5, 0.5, 2.0, 1.0, 1.0])
    frames = torch.arange(6)
    shifted = 2 * ((teacher / 2).softmax(-1) * weights).log()

    assert logit_loss(shifted, teacher, frames, 2.0, class_weights=weights).item() < 1e-6
    assert logit_loss(teacher, teacher, frames, 2.0, class_weights=weights).item() > 0.01
    torch.testing.assert_close(
        logit_loss(shifted, teacher, frames, 2.0, class_weights=torch.ones(5)),
        logit_loss(shifted, teacher, frames, 2.0),
    )
