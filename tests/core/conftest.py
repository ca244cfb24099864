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
    """Saves a randomly initialized Parakeet, no tensor at its default; blank comes last."""
    transformers = pytest.importorskip("transformers")

    def save(folder, vocabulary, *, decoder="CTC", shard="5GB", dtype=None, own=None, **sizes):
        torch.manual_seed(0)
        blank = "pad_token_id" if decoder == "CTC" else "blank_token_id"
        config = getattr(transformers, f"Parakeet{decoder}Config")(
            vocab_size=vocabulary,
            encoder_config=SIZES | sizes,
            **{blank: vocabulary - 1},
            **(own or {}),
        )
        model = getattr(transformers, f"ParakeetFor{decoder}")(config).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point():
                    tensor.add_(0.05 * torch.randn_like(tensor))
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        mels = sizes.get("num_mel_bins", 80)
        transformers.ParakeetFeatureExtractor(feature_size=mels).save_pretrained(folder)
        return model

    return save
