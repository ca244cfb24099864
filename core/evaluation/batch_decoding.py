"""Transcripts of a feature store by batches."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.config.trial import DecoderName
from core.conformer.masking import Folded
from core.conformer.model import Conformer
from core.conformer.output import Output
from core.data.batching import dev_batches
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.decoders.ctc import greedy
from core.decoders.greedy import GreedyDecoder
from core.evaluation.transducer_beam import AnyDecoder, TransducerBeamSearch
from core.evaluation.word_alignment import Decoder, join_words, path_words
from core.features.spec import NATIVE

BATCH_SECONDS = 120.0


@torch.inference_mode()
def decode_store(
    model: nn.Module,
    store: FeatureStore,
    tokenizer: Tokenizer,
    device: torch.device,
    *,
    shortest: int = NATIVE.shortest,
    decoder: AnyDecoder | None = None,
    judged: DecoderName = "auto",
) -> list[str]:
    """Return the transcripts in the store's order; an utterance too short for a frame gets "".

    Args:
        model: a Conformer, or another module that returns its `Output` with CTC logits.
        store: features of the utterances.
        tokenizer: of the model.
        device: of the model.
        shortest: frames of features that the model needs for one output frame.
        decoder: decodes one utterance after the other; by default the best token of each frame or
            place is taken, for all utterances of a batch at once.
        judged: which decoder of a hybrid gives the best tokens.
    """
    model.eval()
    texts = [""] * len(store)
    for batch in dev_batches(store, BATCH_SECONDS):
        if int(batch.num_frames.max()) < shortest:
            continue  # no utterance has an output frame
        ready = batch.to(device)
        output = model(ready.features, ready.num_frames)
        if decoder is None:
            transcripts = map(tokenizer.decode, best_tokens(model, output, judged))
        elif isinstance(decoder, TransducerBeamSearch):
            transcripts = map(tokenizer.decode, _searched_tokens(model, output, decoder))
        else:
            log_probabilities = output.logits.float().log_softmax(-1)  # (B, T, V)
            transcripts = map(
                partial(_decode_utterance, decoder, tokenizer), log_probabilities, output.num_frames
            )
        # Batches hold the shortest utterances first; `indices` are their numbers in the store.
        for index, text in zip(batch.indices, transcripts, strict=True):
            texts[index] = text
    return texts


def best_tokens(model: nn.Module, output: Output, judged: DecoderName = "auto") -> list[list[int]]:
    """Return each utterance's tokens by greedy decoding.

    Args:
        model: has the transducer, if there is one.
        output: of the model.
        judged: which decoder of a hybrid; by default a transducer, or else the CTC head.
    """
    transducer: GreedyDecoder | None = getattr(model, "transducer", None)
    if transducer is None or judged == "ctc":
        return greedy(output.logits, output.num_frames)
    assert output.encoded is not None
    by_utterance = transducer.greedy(output.encoded, output.num_frames)
    return [[symbol.token for symbol in symbols] for symbols in by_utterance]


def _searched_tokens(
    model: nn.Module, output: Output, decoder: TransducerBeamSearch
) -> Iterator[list[int]]:
    assert isinstance(model, Conformer)
    assert model.transducer is not None
    assert output.encoded is not None
    for encoded, count in zip(output.encoded, output.num_frames.tolist(), strict=True):
        best, *_ = decoder.search(model.transducer, encoded[:count])
        yield [symbol.token for symbol in best.symbols()]


class _Decoding(nn.Module):
    """A model whose output is what it says."""

    def __init__(self, model: Conformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        features: Float[Tensor, "batch mel_frames mels"],
        num_frames: Int[Tensor, " batch"],
        closed: AbstractSet[str],
    ) -> list[list[int]]:
        return best_tokens(self.model, self.model(features, num_frames, closed))


@torch.no_grad()
def gated_tokens(
    model: Conformer,
    features: Float[Tensor, "batch mel_frames mels"],
    num_frames: Int[Tensor, " batch"],
    folded: Folded,
) -> list[list[int]]:
    """Return each utterance's tokens by greedy decoding with folded tensors.

    Args:
        model: the model.
        features: of the batch.
        num_frames: mel frames of each utterance.
        folded: tensors under a mask.
    """
    tensors = {f"model.{name}": tensor for name, tensor in folded.tensors.items()}
    arguments = (features, num_frames, folded.closed)
    tokens: list[list[int]] = torch.func.functional_call(_Decoding(model), tensors, arguments)
    return tokens


def _decode_utterance(
    decoder: Decoder,
    tokenizer: Tokenizer,
    log_probabilities: Float[Tensor, "time vocabulary"],
    num_frames: Int[Tensor, ""],
) -> str:
    return join_words(path_words(decoder([log_probabilities[: int(num_frames)].cpu()]), tokenizer))
