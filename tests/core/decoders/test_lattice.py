"""Transducers' losses: against all paths one by one, and against other people's programs."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from core.decoders.joint import Joint
from core.decoders.lattice import Arcs, transducer_loss

DURATIONS = [(0, 1, 2, 3, 4), (0, 1), (0, 1, 2), (1, 2), (0, 1, 2, 4, 8)]
SIZES = list(itertools.product((1, 2, 3, 5, 6), (0, 1, 2, 3)))
WIDTH, VOCABULARY = 8, 11


def made_arcs(time, tokens, blank_durations, label_durations, *, batch=1, seed=0):
    """Log-probabilities such that all that leave a place sum to 1."""
    random = torch.Generator().manual_seed(seed)
    kinds = len(blank_durations) + len(label_durations)
    shape = (kinds, batch, time, tokens + 1)
    every = torch.randn(shape, generator=random, dtype=torch.float64).log_softmax(0)
    blanks, labels = every.split([len(blank_durations), len(label_durations)])
    return Arcs(
        blanks=blanks,
        labels=labels,
        blank_durations=blank_durations,
        label_durations=label_durations,
    )


def of_durations(durations):
    return tuple(d for d in durations if d), durations


def paths(arcs, time, tokens, t=0, u=0, utterance=0) -> Iterator[float]:
    """The log-probability of every path from (t, u) to the end, each walked for itself."""
    for k, d in enumerate(arcs.blank_durations):
        arc = float(arcs.blanks[k, utterance, t, u])
        if t + d == time and u == tokens:
            yield arc
        elif t + d < time:
            yield from (arc + p for p in paths(arcs, time, tokens, t + d, u, utterance))
    for k, d in enumerate(arcs.label_durations):
        if u < tokens and t + d < time:
            arc = float(arcs.labels[k, utterance, t, u])
            yield from (arc + p for p in paths(arcs, time, tokens, t + d, u + 1, utterance))


def loss_of_one(arcs, time, tokens):
    return float(transducer_loss(arcs, torch.tensor([time]), torch.tensor([tokens])))


@pytest.mark.parametrize("durations", [(), *DURATIONS], ids=str)
def test_the_loss_sums_over_all_paths(durations):
    kinds = of_durations(durations) if durations else ((1,), (0,))
    for seed, (time, tokens) in enumerate(SIZES):
        arcs = made_arcs(time, tokens, *kinds, seed=seed)
        likelihood = math.fsum(math.exp(p) for p in paths(arcs, time, tokens))

        loss = loss_of_one(arcs, time, tokens)

        if likelihood:
            assert abs(loss + math.log(likelihood)) < 1e-12
        else:  # with durations 1 and 2, three tokens do not fit two frames
            assert loss > 1e29


@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4), (1, 2)], ids=str)
def test_gradients_are_those_of_finite_differences(durations):
    kinds = of_durations(durations) if durations else ((1,), (0,))
    arcs = made_arcs(5, 3, *kinds, batch=3)
    num_frames, num_tokens = torch.tensor([5, 4, 3]), torch.tensor([3, 0, 2])

    def loss(blanks, labels):
        again = Arcs(
            blanks=blanks, labels=labels, blank_durations=kinds[0], label_durations=kinds[1]
        )
        return transducer_loss(again, num_frames, num_tokens)

    inputs = (arcs.blanks.requires_grad_(), arcs.labels.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4)], ids=str)
def test_padding_is_not_read(durations):
    kinds = of_durations(durations) if durations else ((1,), (0,))
    arcs = made_arcs(9, 4, *kinds, batch=2)
    num_frames, num_tokens = torch.tensor([9, 6]), torch.tensor([4, 2])
    blanks, labels = arcs.blanks.clone(), arcs.labels.clone()
    blanks[:, 1, 6:], labels[:, 1, 6:] = math.nan, math.nan
    blanks[:, 1, :, 3:], labels[:, 1, :, 2:] = math.inf, -math.inf
    cut = Arcs(
        blanks=arcs.blanks[:, 1:, :6, :3],
        labels=arcs.labels[:, 1:, :6, :3],
        blank_durations=kinds[0],
        label_durations=kinds[1],
    )
    padded = Arcs(
        blanks=blanks.requires_grad_(),
        labels=labels.requires_grad_(),
        blank_durations=kinds[0],
        label_durations=kinds[1],
    )

    losses = transducer_loss(padded, num_frames, num_tokens)

    losses.sum().backward()
    assert losses[1].item() == pytest.approx(loss_of_one(cut, 6, 2), abs=1e-12)
    assert blanks.grad[:, 1, 6:].abs().max() == 0
    assert blanks.grad.isfinite().all()
    assert labels.grad.isfinite().all()


def test_the_posteriors_of_all_arcs_of_a_kind_count_what_a_path_takes_of_it():
    arcs = made_arcs(7, 3, *of_durations((0, 1, 2, 3, 4)))
    blanks, labels = arcs.blanks.requires_grad_(), arcs.labels.requires_grad_()

    transducer_loss(arcs, torch.tensor([7]), torch.tensor([3])).backward()

    # A path takes each token once, and its durations sum to the frames.
    assert -labels.grad.sum() == pytest.approx(3)
    frames = sum(
        d * -g.sum()
        for durations, grads in (
            (arcs.blank_durations, blanks.grad),
            (arcs.label_durations, labels.grad),
        )
        for d, g in zip(durations, grads, strict=True)
    )
    assert frames == pytest.approx(7)


def test_durations_0_and_1_with_blanks_alone_at_1_are_rnnt():
    plain = made_arcs(6, 3, (1,), (0,))
    never = torch.full_like(plain.labels, -math.inf)
    timed = Arcs(
        blanks=plain.blanks,
        labels=torch.cat((plain.labels, never)),
        blank_durations=(1,),
        label_durations=(0, 1),
    )

    assert loss_of_one(timed, 6, 3) == pytest.approx(loss_of_one(plain, 6, 3), abs=1e-12)


def test_fastemit_scales_the_gradients_of_labels_alone():
    arcs = made_arcs(6, 3, (1,), (0,))
    grads = []
    for fastemit in (0.0, 0.5):
        blanks, labels = (x.clone().requires_grad_() for x in (arcs.blanks, arcs.labels))
        again = Arcs(blanks=blanks, labels=labels, blank_durations=(1,), label_durations=(0,))
        loss = transducer_loss(again, torch.tensor([6]), torch.tensor([3]), fastemit=fastemit)
        loss.backward()
        grads.append((loss.item(), blanks.grad, labels.grad))

    (plain, blanks, labels), (early, same_blanks, more_labels) = grads
    assert early == plain
    assert torch.equal(same_blanks, blanks)
    torch.testing.assert_close(more_labels, 1.5 * labels)


def test_a_blank_that_takes_no_frame_is_refused():
    arcs = made_arcs(2, 1, (1,), (0,))
    with pytest.raises(ValueError, match="`blank_durations` must be 1 or more"):
        Arcs(blanks=arcs.blanks, labels=arcs.labels, blank_durations=(0,), label_durations=(0,))


def made_joint(durations=(), *, blank=0, seed=0):
    torch.manual_seed(seed)
    joint = Joint(
        encoder_width=6,
        predictor_width=5,
        width=WIDTH,
        vocabulary=VOCABULARY,
        blank=blank,
        durations=durations,
    ).double()
    encoded = torch.randn(3, 17, 6, dtype=torch.float64, requires_grad=True)
    predicted = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(1, VOCABULARY - 1, (3, 6))
    lengths = torch.tensor([17, 12, 9]), torch.tensor([6, 4, 5])
    return joint, encoded, predicted, tokens, lengths


def whole_logits(joint, encoded, predicted):
    """The distributions at all places at once, as other programs want them."""
    return joint.logits(joint.encoder(encoded)[:, :, None], joint.predictor(predicted)[:, None])


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**30])
@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4)], ids=str)
def test_blocks_of_frames_give_what_all_frames_give(durations, block_bytes):
    joint, encoded, predicted, tokens, lengths = made_joint(durations)
    grads = []
    for size, kept in ((block_bytes, 0), (2**30, 2**30)):
        joint.zero_grad()
        encoded.grad = predicted.grad = None
        scores = joint.scores(encoded, predicted, tokens, block_bytes=size, kept_bytes=kept)
        loss = transducer_loss(scores.arcs(sigma=0.05), *lengths).sum()
        loss.backward()
        each = [encoded.grad, predicted.grad, *(p.grad for p in joint.parameters())]
        grads.append([loss.detach(), *(g.clone() for g in each)])

    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_rnnt_is_that_of_torchaudio():
    theirs = pytest.importorskip("torchaudio.functional", exc_type=ImportError)
    joint, encoded, predicted, tokens, lengths = made_joint()
    logits, _ = whole_logits(joint, encoded, predicted)

    expected = theirs.rnnt_loss(
        logits.float(),
        tokens.int(),
        *(each.int() for each in lengths),
        blank=0,
        reduction="none",
        fused_log_softmax=True,
    )
    loss = transducer_loss(joint.scores(encoded, predicted, tokens).arcs(), *lengths)

    torch.testing.assert_close(loss.float(), expected, atol=1e-5, rtol=1e-6)
    found, right = (
        torch.autograd.grad(each.sum(), [encoded, predicted]) for each in (loss, expected)
    )
    for own, other in zip(found, right, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_tdt_is_that_of_transformers(sigma):
    theirs = pytest.importorskip("transformers.loss.loss_tdt")
    durations, blank = (0, 1, 2, 3, 4), VOCABULARY - 1
    joint, encoded, predicted, tokens, lengths = made_joint(durations, blank=blank)
    logits, of_durations = whole_logits(joint, encoded, predicted)

    expected = theirs.tdt_loss(
        logits, of_durations, tokens, *lengths, blank, [*durations], sigma=sigma, reduction="none"
    )
    loss = transducer_loss(joint.scores(encoded, predicted, tokens).arcs(sigma=sigma), *lengths)

    torch.testing.assert_close(loss, expected.double(), atol=1e-5, rtol=1e-6)
    found, right = (
        torch.autograd.grad(each.sum(), [encoded, predicted]) for each in (loss, expected)
    )
    for own, other in zip(found, right, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


def test_under_autocast_the_loss_stays_near():
    joint, encoded, predicted, tokens, lengths = made_joint()
    joint, encoded, predicted = joint.float(), encoded.float(), predicted.float()

    exact = transducer_loss(joint.scores(encoded, predicted, tokens).arcs(), *lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = transducer_loss(joint.scores(encoded, predicted, tokens).arcs(), *lengths)

    torch.testing.assert_close(rough, exact, atol=0, rtol=0.02)
