"""The units coupled from gradients are the declared ones, and are right for other models, too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.models import Conformer as OtherConformer

from core.testing import deeper, ragged_speech, small_model
from tests.support.coupled_units import find_coupled_units, remove_units


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
def test_on_our_own_model_the_declared_units_are_found():
    model = small_model(shape=deeper(1)).double()
    features, num_frames = ragged_speech(60, dtype=torch.float64)

    coupled = find_coupled_units(model, lambda m: m(features, num_frames).logits)

    assert {frozenset(entry.units) for entry in coupled} == set(declared(model))


def with_columns_of_no_weight(model, coupled, chosen):
    """The masked model: all units are there, but consumers ignore the chosen ones."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for entry in coupled:
        for unit in chosen[entry.consumer]:
            state[f"{entry.consumer}.weight"][:, unit * entry.block : (unit + 1) * entry.block] = 0
    model.load_state_dict(state)
    return model


def some_of(coupled):
    """Every third unit of each consumer."""
    return {entry.consumer: range(0, len(entry.units), 3) for entry in coupled}


def units_of(coupled, chosen):
    return [entry.units[unit] for entry in coupled for unit in chosen[entry.consumer]]


class Heads(nn.Module):
    """Computes what `nn.MultiheadAttention` does, for as many heads as its weights have rows for.

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


@pytest.mark.long
@pytest.mark.slow
def test_torchaudios_conformer_is_cut_and_computes_what_it_did_masked():
    torch.manual_seed(0)
    model = OtherConformer(
        input_dim=12, num_heads=3, ffn_dim=20, num_layers=2, depthwise_conv_kernel_size=5
    )
    model = model.double().eval()
    speech, lengths = torch.randn(2, 9, 12).double(), torch.tensor([9, 6])

    coupled = find_coupled_units(model, lambda m: m(speech, lengths)[0])
    chosen = some_of(coupled)
    small = remove_units(model, units_of(coupled, chosen))
    for layer in small.conformer_layers:
        layer.self_attn = Heads(layer.self_attn, head_width=4)
    masked = with_columns_of_no_weight(model, coupled, chosen)

    # Per layer: two feed-forwards, the convolution's channels, and heads of four.
    assert sorted((len(entry.units), entry.block) for entry in coupled) == sorted(
        2 * [(20, 1), (20, 1), (12, 1), (3, 4)]
    )
    assert small.conformer_layers[0].self_attn.out_proj.weight.shape == (12, 8)
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, small))
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

    coupled = find_coupled_units(model, lambda m: m(speech).logits, consumers=consumers)
    chosen = some_of(coupled)
    small = remove_units(model, units_of(coupled, chosen))
    for layer in small.wav2vec2_conformer.encoder.layers:
        layer.self_attn.num_heads = 2
    masked = with_columns_of_no_weight(model, coupled, chosen)

    assert sorted((len(entry.units), entry.block) for entry in coupled) == sorted(
        2 * [(20, 1), (20, 1), (12, 1), (3, 4)]
    )
    with torch.no_grad():
        torch.testing.assert_close(small(speech).logits, masked(speech).logits)


@pytest.mark.long
@pytest.mark.slow
def test_a_closed_unit_changes_nothing_whatever_its_own_weights_are():
    model = small_model(shape=deeper(1)).double()
    features, num_frames = ragged_speech(60, dtype=torch.float64)
    coupled = find_coupled_units(model, lambda m: m(features, num_frames).logits)
    chosen = some_of(coupled)
    masked = with_columns_of_no_weight(model, coupled, chosen)
    with torch.no_grad():
        before = masked(features, num_frames)
        parameters = dict(masked.named_parameters())
        columns = {f"{entry.consumer}.weight" for entry in coupled}
        for name, dim, index in frozenset().union(*units_of(coupled, chosen)):
            if dim == 0 and name not in columns:
                parameters[name][index].normal_()
        after = masked(features, num_frames)

    torch.testing.assert_close(after.logits[after.is_frame], before.logits[before.is_frame])


def test_the_residual_stream_is_no_unit():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x):
            x = self.into(x)
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model, example = Residual(), torch.randn(7, 5)

    coupled = find_coupled_units(model, lambda m: m(example.double()))

    assert [entry.consumer for entry in coupled] == ["down"]
    (entry,) = coupled
    assert entry.block == 1
    assert entry.units[2] == {("up.weight", 0, 2), ("up.bias", 0, 2), ("down.weight", 1, 2)}


def test_the_model_is_not_changed():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).train()
    model[0].weight.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = torch.randn(5, 4)

    find_coupled_units(model, lambda m: m(example.double()))

    assert model.training
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
