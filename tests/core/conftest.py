"""Recognizers of transformers' own class, for importers and exporters."""

import pytest
import torch

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "subsampling_conv_channels": 8,
}


@pytest.fixture(scope="session")
def save_parakeet():
    """Saves a randomly initialized `ParakeetForCTC`, no tensor at its default; blank comes last."""
    transformers = pytest.importorskip("transformers")

    def save(folder, vocabulary, **sizes):
        torch.manual_seed(0)
        config = transformers.ParakeetCTCConfig(
            vocab_size=vocabulary, pad_token_id=vocabulary - 1, encoder_config=SIZES | sizes
        )
        model = transformers.ParakeetForCTC(config).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point():
                    tensor.add_(0.05 * torch.randn_like(tensor))
        model.save_pretrained(folder)
        transformers.ParakeetFeatureExtractor().save_pretrained(folder)
        return model

    return save
