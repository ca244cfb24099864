"""Units found by dead gradients are the declared ones, and are right on models never seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.models import Conformer as OtherConformer

from core.pruning.comb import combed, without
from core.testing import deeper, ragged_speech, small_model


def declared(model):
    """The entries of each unit of each axis but width and modules, parameters alone."""
    parameters = dict(model.named_parameters())
    for axis in model.axes():
        if axis.is_whole or axis.kind in ("width", "rank"):
            continue
        yield frozenset(
            frozenset(
                (piece.tensor, piece.dim, piece.offset + unit * piece.block + inside)
                for piece in axis.slices
                if piece.tensor in parameters
                for inside in range(piece.block)
            )
            for unit in range(axis.size)
        )


@pytest.mark.long
@pytest.mark.slow
def test_on_our_own_model_it_finds_what_is_declared():
    model = small_model(shape=deeper(1)).double()
    features, num_frames = ragged_speech(60, dtype=torch.float64)

    found = combed(model, lambda m: m(features, num_frames).logits)

    assert {frozenset(comb.units) for comb in found} == set(declared(model))


def with_columns_of_no_weight(model, combs, chosen):
    """The masked model: consumers do not see the units that are chosen, which are all there."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for comb in combs:
        for unit in chosen[comb.consumer]:
            state[f"{comb.consumer}.weight"][:, unit * comb.block : (unit + 1) * comb.block] = 0
    model.load_state_dict(state)
    return model


def some_of(combs):
    """Every third unit of each comb."""
    return {comb.consumer: range(0, len(comb.units), 3) for comb in combs}


def units_of(combs, chosen):
    return [comb.units[unit] for comb in combs for unit in chosen[comb.consumer]]


class Heads(nn.Module):
    """What `nn.MultiheadAttention` computes, for as many heads as its weights have rows for.

    It cannot have fewer heads than its width makes, so a model that lost some needs another.
    """

    def __init__(self, like, head_width):
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = like.in_proj_weight, like.in_proj_bias
        self.out_proj, self.head_width = like.out_proj, head_width

    def forward(self, query, key, value, key_padding_mask, *, need_weights):
        del key, value, need_weights
        length, batch, _ = query.shape
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (
            part.reshape(length, batch, -1, self.head_width).permute(1, 2, 0, 3)
            for part in projected.chunk(3, dim=-1)
        )
        is_real = ~key_padding_mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=is_real)
        weight, bias = self.out_proj.weight, self.out_proj.bias
        return F.linear(mixed.permute(2, 0, 1, 3).flatten(2), weight, bias), None


@pytest.mark.slow
def test_torchaudios_conformer_is_cut_and_computes_what_it_did_masked():
    torch.manual_seed(0)
    model = OtherConformer(
        input_dim=12, num_heads=3, ffn_dim=20, num_layers=2, depthwise_conv_kernel_size=5
    )
    model = model.double().eval()
    speech, lengths = torch.randn(2, 9, 12).double(), torch.tensor([9, 6])

    combs = combed(model, lambda m: m(speech, lengths)[0])
    chosen = some_of(combs)
    small = without(model, units_of(combs, chosen))
    for layer in small.conformer_layers:
        layer.self_attn = Heads(layer.self_attn, head_width=4)
    masked = with_columns_of_no_weight(model, combs, chosen)

    # Per layer: two feed-forwards, the convolution's channels, and heads of four.
    assert sorted((len(comb.units), comb.block) for comb in combs) == sorted(
        2 * [(20, 1), (20, 1), (12, 1), (3, 4)]
    )
    assert small.conformer_layers[0].self_attn.out_proj.weight.shape == (12, 8)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, small))
    assert after < 0.75 * before
    with torch.no_grad():
        torch.testing.assert_close(small(speech, lengths)[0], masked(speech, lengths)[0])


@pytest.mark.long
@pytest.mark.slow
def test_an_encoder_of_transformers_is_cut_and_computes_what_it_did_masked():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2ConformerConfig(
        vocab_size=9,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 4),
        num_feat_extract_layers=2,
        conv_depthwise_kernel_size=5,
        position_embeddings_type="relative",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.Wav2Vec2ConformerForCTC(config).double().eval()
    speech = torch.randn(1, 260).double()
    consumers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d) and ".encoder.layers." in name
    ]

    combs = combed(model, lambda m: m(speech).logits, consumers=consumers)
    chosen = some_of(combs)
    small = without(model, units_of(combs, chosen))
    for layer in small.wav2vec2_conformer.encoder.layers:
        layer.self_attn.num_heads = 2
    masked = with_columns_of_no_weight(model, combs, chosen)

    assert sorted((len(comb.units), comb.block) for comb in combs) == sorted(
        2 * [(20, 1), (20, 1), (12, 1), (3, 4)]
    )
    with torch.no_grad():
        torch.testing.assert_close(small(speech).logits, masked(speech).logits)


@pytest.mark.long
@pytest.mark.slow
def test_whatever_its_own_weights_are_a_shut_unit_changes_nothing():
    model = small_model(shape=deeper(1)).double()
    features, num_frames = ragged_speech(60, dtype=torch.float64)
    combs = combed(model, lambda m: m(features, num_frames).logits)
    chosen = some_of(combs)
    masked = with_columns_of_no_weight(model, combs, chosen)
    with torch.no_grad():
        before = masked(features, num_frames)
        parameters = dict(masked.named_parameters())
        columns = {f"{comb.consumer}.weight" for comb in combs}
        for name, dim, place in frozenset().union(*units_of(combs, chosen)):
            if dim == 0 and name not in columns:
                parameters[name][place].normal_()
        after = masked(features, num_frames)

    torch.testing.assert_close(after.logits[after.is_frame], before.logits[before.is_frame])


def test_a_residual_stream_is_nobodys_unit():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x):
            x = self.into(x)
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model, example = Residual(), torch.randn(7, 5)

    found = combed(model, lambda m: m(example.double()))

    assert [comb.consumer for comb in found] == ["down"]
    (comb,) = found
    assert comb.block == 1
    assert comb.units[2] == {("up.weight", 0, 2), ("up.bias", 0, 2), ("down.weight", 1, 2)}


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).train()
    model[0].weight.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = torch.randn(5, 4)

    combed(model, lambda m: m(example.double()))

    assert model.training
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
