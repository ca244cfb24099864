"""What a model hears in a store of utterances."""

import torch
from torch import nn

from core.corpora.batches import dev_batches
from core.corpora.store import FeatureStore
from core.corpora.text import Tokenizer
from core.evaluation.decoding import greedy
from core.hearing import NATIVE

BATCH_SECONDS = 120.0


@torch.inference_mode()
def recognised(
    model: nn.Module,
    store: FeatureStore,
    tokenizer: Tokenizer,
    device: torch.device,
    *,
    shortest: int = NATIVE.shortest,
) -> list[str]:
    """Texts by greedy CTC, in the store's order; an utterance too short for a frame gives none.

    The model is a Conformer, or whatever else gives its `Output`; `shortest` frames of features are
    what it needs for one of its own.
    """
    model.eval()
    texts = [""] * len(store)
    for batch in dev_batches(store, BATCH_SECONDS):
        if int(batch.num_frames.max()) < shortest:
            continue  # no output frame for any of them
        ready = batch.to(device)
        output = model(ready.features, ready.num_frames)
        log_probabilities = output.logits.float().log_softmax(-1)
        for index, ids in zip(
            batch.indices, greedy(log_probabilities, output.num_frames), strict=True
        ):
            texts[index] = tokenizer.decode(ids)
    return texts
