"""What a model hears in a store of utterances."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core.data.batching import dev_batches
from core.data.feature_cache import FeatureStore
from core.data.tokenizer import Tokenizer
from core.evaluation.greedy import greedy
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
    """Texts in the store's order; an utterance too short for a frame gives none.

    The model is a Conformer, or whatever else gives its `Output`; `shortest` frames of features are
    what it needs for one of its own. Without a decoder each frame's best token is taken, of all
    utterances of a batch at once.
    """
    model.eval()
    texts = [""] * len(store)
    for batch in dev_batches(store, BATCH_SECONDS):
        if int(batch.num_frames.max()) < shortest:
            continue  # no output frame for any of them
        ready = batch.to(device)
        output = model(ready.features, ready.num_frames)
        log_probabilities = output.logits.float().log_softmax(-1)
        if decoder is None:
            heard = map(tokenizer.decode, greedy(log_probabilities, output.num_frames))
        else:
            heard = map(partial(_decoded, decoder, tokenizer), log_probabilities, output.num_frames)
        for index, text in zip(batch.indices, heard, strict=True):
            texts[index] = text
    return texts


def _decoded(
    decoder: Decoder,
    tokenizer: Tokenizer,
    log_probabilities: Float[Tensor, "time vocabulary"],
    num_frames: Int[Tensor, ""],
) -> str:
    return join_words(path_words(decoder([log_probabilities[: int(num_frames)].cpu()]), tokenizer))
