"""Transcripts of a feature store by batches."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.data.batching import dev_batches
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.decoders.ctc import greedy
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
    decoder: Decoder | None = None,
) -> list[str]:
    """Return the transcripts in the store's order; an utterance too short for a frame gets "".

    Args:
        model: a Conformer, or another module that returns its `Output`.
        store: features of the utterances.
        tokenizer: of the model.
        device: of the model.
        shortest: frames of features that the model needs for one output frame.
        decoder: decodes one utterance; by default the best token of each frame is taken, for all
            utterances of a batch at once.
    """
    model.eval()
    texts = [""] * len(store)
    for batch in dev_batches(store, BATCH_SECONDS):
        if int(batch.num_frames.max()) < shortest:
            continue  # no utterance has an output frame
        ready = batch.to(device)
        output = model(ready.features, ready.num_frames)
        log_probabilities = output.logits.float().log_softmax(-1)  # (B, T, V)
        if decoder is None:
            transcripts = map(tokenizer.decode, greedy(log_probabilities, output.num_frames))
        else:
            transcripts = map(
                partial(_decode_utterance, decoder, tokenizer), log_probabilities, output.num_frames
            )
        # Batches hold the shortest utterances first; `indices` are their numbers in the store.
        for index, text in zip(batch.indices, transcripts, strict=True):
            texts[index] = text
    return texts


def _decode_utterance(
    decoder: Decoder,
    tokenizer: Tokenizer,
    log_probabilities: Float[Tensor, "time vocabulary"],
    num_frames: Int[Tensor, ""],
) -> str:
    return join_words(path_words(decoder([log_probabilities[: int(num_frames)].cpu()]), tokenizer))
