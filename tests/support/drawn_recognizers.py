"""Recognizers of drawn weights that say different tokens of different noise."""

from pathlib import Path

import torch

from core.config.trial import CorpusConfig
from core.conformer.model import Conformer
from core.data.tokenizer import Tokenizer
from core.decoders.predictor import predict


def short_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.train(["ONE TWO", "TEN"], CorpusConfig(tokens="char", vocabulary=12), folder)


def balance(model: Conformer) -> None:
    """Let a model say all its tokens of noise, and the blank at about half of its places."""
    features = torch.randn(4, 300, model.mels, generator=torch.Generator().manual_seed(0))
    own = model.transducer
    last = model.ctc_head if own is None else own.joint.output
    with torch.no_grad():
        last.weight *= 20.0
        output = model(features, torch.full((4,), 300))
        if own is None:
            logits = output.logits
        else:
            tokens = torch.randint(1, model.vocabulary, (4, 38))
            frames = own.joint.encoder(output.encoded)
            predicted = own.joint.predictor(predict(own.predictor, tokens))
            logits = torch.cat(own.joint.logits(frames[:, :, None], predicted[:, None]), -1)
        mean = logits.flatten(0, -2).mean(0)
        last.bias.sub_(mean)
        first = (logits - mean)[..., : model.vocabulary]
        # Before the first token, the blank is the best of some places only.
        first = first if own is None else first[:, :, 0]
        last.bias[0] += (first[..., 1:].amax(-1) - first[..., 0]).quantile(0.5)
