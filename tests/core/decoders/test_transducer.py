"""Transducers: predictors, greedy search, axes and costs."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from core.config.pruning import PruningConfig
from core.config.trial import LossConfig
from core.conformer.axes import Lengths
from core.conformer.masking import fold, gated_forward, named_tensors
from core.conformer.model import Conformer
from core.conformer.shape import Shape
from core.decoders.ctc import BLANK
from core.decoders.greedy import MOST_SYMBOLS
from core.decoders.lattice import transducer_loss
from core.decoders.predictor import predict
from core.decoders.task_loss import lattice_divergence, task_loss
from core.decoders.transducer import TOKENS_PER_SECOND
from core.evaluation.batch_decoding import best_tokens, gated_tokens
from core.pruning.extraction import as_mask, extract
from core.pruning.space import Space
from core.testing import (
    MASK_KINDS,
    SHAPE,
    TRANSDUCERS,
    noise_with_tokens,
    ragged_speech,
    random_mask,
    small_model,
    with_transducer,
)

KINDS = pytest.mark.parametrize("kind", list(TRANSDUCERS))
OWN_AXES = {"embedding", "unit", "joint"}


def made(kind, *, seed=0, has_ctc=False):
    model = small_model(seed, shape=with_transducer(SHAPE, kind, has_ctc=has_ctc)).double()
    with torch.no_grad():  # so that tokens, blanks and durations take turns
        model.transducer.joint.output.weight.mul_(8)
    return model


def speech(*lengths, seed=0):
    return ragged_speech(*lengths, seed=seed, dtype=torch.float64)


def decoded(model, features, num_frames):
    output = model(features, num_frames)
    return model.transducer.greedy(output.encoded, output.num_frames)


def decode_alone(model, encoded):
    """One utterance; the predictor reads all tokens so far at each place."""
    joint, durations = model.transducer.joint, model.transducer.joint.durations
    tokens, found, frame, at_frame = [], [], 0, 0
    while frame < len(encoded):
        predicted = predict(model.transducer.predictor, torch.tensor([tokens], dtype=torch.long))
        logits, of_durations = joint.logits(
            joint.encoder(encoded[frame]), joint.predictor(predicted[0, -1])
        )
        token = int(logits.argmax())
        moved = durations[int(of_durations.argmax())] if durations else int(token == BLANK)
        if token != BLANK:
            found.append((token, frame, moved))
            tokens.append(token)
            at_frame += 1
        if moved == 0 and (token == BLANK or at_frame == MOST_SYMBOLS):
            moved = 1
        at_frame = 0 if moved else at_frame
        frame += moved
    return found


@KINDS
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_greedy_search_in_a_batch_finds_what_one_utterance_alone_says(kind, seed):
    model = made(kind, seed=seed)
    features, num_frames = speech(90, 61, 40, 9, seed=seed)
    output = model(features, num_frames)

    found = decoded(model, features, num_frames)

    for symbols, encoded, count in zip(found, output.encoded, output.num_frames, strict=True):
        alone = decode_alone(model, encoded[:count])
        assert [(s.token, s.frame, s.duration) for s in symbols] == alone
        assert all(s.log_probability <= 0 for s in symbols)
    assert any(found)


@KINDS
def test_a_predictors_state_carries_it_over_any_cut(kind):
    predictor = made(kind).transducer.predictor
    tokens = torch.tensor([[BLANK, 3, 1, 5, 2, 2], [BLANK, 1, 1, 4, 6, 3]])

    whole, last = predictor.advance(tokens, predictor.start(2))
    for cut in range(1, 6):
        first, state = predictor.advance(tokens[:, :cut], predictor.start(2))
        second, end = predictor.advance(tokens[:, cut:], state)

        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        for own, other in zip(end, last, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("mask_kind", MASK_KINDS)
@KINDS
def test_the_extracted_model_computes_what_the_masked_one_did(kind, mask_kind):
    has_ctc = mask_kind in ("binary", "empty_blocks")
    model = made(kind, has_ctc=has_ctc)
    mask = random_mask(model.axes(), mask_kind)
    batch = noise_with_tokens()
    features, num_frames = batch.features.double(), batch.num_frames
    folded = fold(named_tensors(model), model.axes(), mask, narrow_from=1.1)

    expected = gated_forward(model, features, num_frames, folded, tokens=batch.tokens)
    small = extract(model, mask)
    found = small(features, num_frames, tokens=batch.tokens)

    for name in ("blank", "label", "duration"):
        own, other = getattr(found.lattice, name), getattr(expected.lattice, name)
        torch.testing.assert_close(own[found.is_frame], other[found.is_frame])
    assert (found.ctc_logits is None) != has_ctc
    assert small.transducer.joint.output.in_features == int((mask["transducer.joint"] != 0).sum())


@KINDS
def test_the_settings_of_the_loss_mix_and_lower_what_they_say(kind):
    """Sigma and omega speak of TDT alone; the CTC head has a share of the whole."""
    model = made(kind, has_ctc=True)
    batch = noise_with_tokens()
    output = model(batch.features.double(), batch.num_frames, tokens=batch.tokens)
    arguments = output, batch.tokens, batch.num_tokens
    alone, scores = replace(output, ctc_logits=None), output.lattice

    def mean(losses):
        return (losses / batch.num_tokens).mean()

    lengths = output.num_frames, batch.num_tokens
    own = mean(transducer_loss(scores.arcs(), *lengths))
    plain = mean(transducer_loss(scores.without_durations().arcs(), *lengths))
    lowered = mean(transducer_loss(scores.arcs(sigma=0.02), *lengths))
    ctc = task_loss(*arguments, LossConfig(ctc_weight=0.5)) * 2 - own
    is_tdt = bool(scores.durations)

    def loss(**settings):
        return task_loss(alone, *arguments[1:], LossConfig(**settings))

    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)  # CTC is in single
    close(loss(), own)
    close(loss(omega=0.1), 0.9 * own + 0.1 * plain)
    close(loss(sigma=0.02), lowered if is_tdt else own)
    close(loss(fastemit=0.5), own)  # gradients alone
    close(task_loss(*arguments), 0.7 * own + 0.3 * ctc)
    close(task_loss(*arguments, LossConfig(ctc_weight=0.0)), own)


@KINDS
def test_gradients_under_gates_are_those_of_the_folded_tensors(kind):
    """The joint's blocks are computed again for gradients, when the model has its own tensors."""
    model = made(kind)
    mask = random_mask(model.axes(), "soft")
    mask = {name: z.double().requires_grad_() for name, z in mask.items()}
    batch = noise_with_tokens()

    def loss_of(gates):
        folded = fold(named_tensors(model), model.axes(), gates)
        output = gated_forward(
            model, batch.features.double(), batch.num_frames, folded, tokens=batch.tokens
        )
        return task_loss(output, batch.tokens, batch.num_tokens)

    (gradient,) = torch.autograd.grad(loss_of(mask), [mask["transducer.joint"]])

    step = 1e-6
    for unit in mask["transducer.joint"].nonzero().flatten().tolist()[:3]:
        moved = mask["transducer.joint"].detach().clone()
        moved[unit] += step
        with torch.no_grad():
            change = loss_of({**mask, "transducer.joint": moved}) - loss_of(mask)
        assert float(change / step) == pytest.approx(float(gradient[unit]), rel=1e-4, abs=1e-7)


@KINDS
@pytest.mark.parametrize("seed", range(13))
def test_the_cost_is_that_of_the_extracted_tensors_at_the_stated_rates(kind, seed):
    model, seconds = made(kind, has_ctc=seed % 2 == 0), 2.3
    space = Space.of(model, PruningConfig().axes, seconds)
    chosen = random_mask(space.axes, MASK_KINDS[seed % len(MASK_KINDS)], seed)
    choice = {name: z != 0 for name, z in chosen.items()}

    cost = space.choice_cost(choice)

    small = extract(model, as_mask(choice))
    assert cost.params == sum(p.numel() for p in small.parameters())
    without = extract(small, {})
    without.transducer = None
    without.shape = small.shape
    lengths = Lengths.of(seconds, small.shape.frontend_spec)
    counts = {axis.name: axis.size for axis in small.axes()}
    rest = without.cost(counts, seconds).flops
    tokens, frames = round(TOKENS_PER_SECOND * seconds), lengths.frames
    visits = tokens + (round(frames / 2) if small.transducer.joint.durations else frames)
    joint = small.transducer.joint
    weights = {
        "embedding": 0,  # is looked up
        "convolution": tokens,
        "layers": tokens,
    }
    own = sum(
        2 * weights[name.split(".")[0]] * tensor.numel()
        for name, tensor in small.transducer.predictor.named_parameters()
        if tensor.dim() > 1
    )
    own += 2 * frames * joint.encoder.weight.numel() + 2 * tokens * joint.predictor.weight.numel()
    own += 2 * visits * joint.output.weight.numel()
    assert cost.flops - rest == own


def test_the_expected_cost_of_lstm_units_is_the_mean_over_their_numbers():
    space = Space.of(made("lstm tdt"), ["unit"], 4.0)
    (axis,) = space.prunable
    open_with = 0.3

    expected = space.mask_cost(
        {axis.name: torch.full((axis.size,), open_with, dtype=torch.float64)}
    )

    shares = [  # of a number n of open units: binomial
        math.comb(axis.size, n) * open_with**n * (1 - open_with) ** (axis.size - n)
        for n in range(axis.size + 1)
    ]
    costs = [space.counted_cost({axis.name: n}) for n in range(axis.size + 1)]
    for resource in ("flops", "params"):
        mean = sum(p * getattr(c, resource) for p, c in zip(shares, costs, strict=True))
        assert float(getattr(expected, resource)) == pytest.approx(mean, rel=1e-12)


@KINDS
def test_axes_are_those_of_the_decoder_and_all_its_units_can_go_but_one(kind):
    model = made(kind)
    own = [axis for axis in model.axes() if axis.name.startswith("transducer.")]

    assert {axis.kind for axis in own} <= OWN_AXES
    for axis in own:
        gates = torch.zeros(axis.size)
        gates[0] = 1
        small = extract(model, {axis.name: gates})
        batch = noise_with_tokens()
        loss = task_loss(
            small(batch.features.double(), batch.num_frames, tokens=batch.tokens),
            batch.tokens,
            batch.num_tokens,
        )
        assert loss.isfinite()
        with pytest.raises(ValueError, match=f"`{axis.name}` must keep at least 1 units"):
            extract(model, {axis.name: torch.zeros(axis.size)})


@KINDS
def test_padding_changes_neither_loss_nor_tokens(kind):
    model = made(kind)
    features, num_frames = speech(90, 61)
    tokens = pad_sequence([torch.tensor([3, 1, 2]), torch.tensor([5])], batch_first=True)
    louder = features.clone()
    louder[1, 61:] = 100.0

    losses = [
        transducer_loss(
            model(each, num_frames, tokens=tokens).lattice.arcs(),
            model(each, num_frames).num_frames,
            torch.tensor([3, 1]),
        )
        for each in (features, louder)
    ]

    torch.testing.assert_close(*losses)
    assert decoded(model, features, num_frames) == decoded(model, louder, num_frames)


@KINDS
@torch.no_grad()
def test_a_model_diverges_from_itself_by_nothing_and_from_another_by_more(kind):
    batch = noise_with_tokens()
    scores = [
        made(kind, seed=seed)(batch.features.double(), batch.num_frames, tokens=batch.tokens)
        for seed in (0, 1)
    ]
    lengths = scores[0].num_frames, batch.num_tokens
    own, other = (each.lattice for each in scores)

    assert lattice_divergence(own, own, *lengths) == pytest.approx(0, abs=1e-12)
    assert lattice_divergence(own, other, *lengths) > 0


@pytest.mark.long
def test_a_transducer_learns_what_it_is_taught():
    """Some steps on one batch, and the greedy tokens are its transcripts."""
    torch.manual_seed(0)
    for kind in ("stateless rnnt", "lstm tdt"):
        model = Conformer(with_transducer(SHAPE, kind)).eval()
        batch = noise_with_tokens()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(300):
            output = model(batch.features, batch.num_frames, tokens=batch.tokens)
            optimizer.zero_grad()
            task_loss(output, batch.tokens, batch.num_tokens).backward()
            optimizer.step()

        found = decoded(model, batch.features, batch.num_frames)

        right = [
            tokens[:count].tolist()
            for tokens, count in zip(batch.tokens, batch.num_tokens, strict=True)
        ]
        assert [[s.token for s in symbols] for symbols in found] == right, kind


@pytest.mark.parametrize("has_ctc", [False, True])
@KINDS
def test_a_shape_is_read_back_as_it_was_written(kind, has_ctc):
    shape = with_transducer(SHAPE, kind, has_ctc=has_ctc)

    plain = json.loads(json.dumps(shape.to_plain()))

    assert Shape.from_plain(plain) == shape


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"embedding": 0}, "`transducer.embedding` must be a whole number from 1"),
        ({"units": [10, 0]}, "`transducer.units` must be a whole number from 1"),
        ({"units": "many"}, "`transducer.units` must be a list"),
        ({"units": [], "context": 0}, "`transducer.context` must be a whole number from 1"),
        ({"durations": [0]}, "`transducer.durations` must ascend to 1 or more"),
        ({"durations": [2, 1]}, "`transducer.durations` must ascend"),
        ({"activation": "gelu"}, "`transducer.activation` must be one of relu, tanh, sigmoid"),
        ({"beams": 4}, r"`transducer.\*` must be exactly"),
        ({"joint": True}, "`transducer.joint` must be a whole number"),
    ],
)
def test_a_malformed_shape_is_refused_by_its_key(damage, message):
    plain = with_transducer(SHAPE, "lstm tdt").to_plain()

    with pytest.raises(ValueError, match=message):
        Shape.from_plain({**plain, "transducer": {**plain["transducer"], **damage}})


def test_a_model_without_any_decoder_is_refused():
    with pytest.raises(ValueError, match="`has_ctc` must be true or false, and true without"):
        Shape.from_plain({**SHAPE.to_plain(), "has_ctc": False})


@KINDS
def test_tokens_under_gates_are_those_of_the_extracted_model(kind):
    model = made(kind)
    mask = random_mask(model.axes(), "binary")
    features, num_frames = speech(90, 61, 40)

    found = gated_tokens(
        model, features, num_frames, fold(named_tensors(model), model.axes(), mask)
    )

    small = extract(model, mask)
    assert found == best_tokens(small, small(features, num_frames))


@KINDS
def test_places_are_those_of_the_search_and_their_neighbours(kind):
    model = made(kind)
    features, num_frames = speech(90, 61)
    output = model(features, num_frames)

    places = model.best_places(features, num_frames)

    chosen = set(map(tuple, places.index.tolist()))
    for number, symbols in enumerate(decoded(model, features, num_frames)):
        assert places.tokens[number, : len(symbols)].tolist() == [s.token for s in symbols]
        for before, symbol in enumerate(symbols):
            assert (number, symbol.frame, before) in chosen
            if symbol.frame:
                assert (number, symbol.frame - 1, before) in chosen
    utterance, frame, place = places.index.unbind(1)
    assert (frame < output.num_frames[utterance]).all()
    assert (place <= places.tokens.shape[1]).all()
    log_probs = model(features, num_frames, places=places).log_probs()
    sums = log_probs[:, : model.vocabulary].exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    # Along a transcript the same numbers: blank first.
    scores = model(features, num_frames, tokens=places.tokens).lattice
    torch.testing.assert_close(
        log_probs[:, BLANK].double(), scores.blank[utterance, frame, place], atol=1e-5, rtol=0
    )
