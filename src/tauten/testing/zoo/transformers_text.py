"""Models of text and speech of ``transformers``, from configurations: small, with random weights, no download."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.testing.zoo.entry import ZooModel

WORDS = 64
TOKENS = 10
LABELS = 5

_IDS = TensorSpec(name="input_ids", shape=("batch", TOKENS), dtype="int64")
_MASK = TensorSpec(name="attention_mask", shape=("batch", TOKENS), dtype="int64")


def _make(family: str, head: str, **settings: Any) -> nn.Module:
    """``transformers`` is imported here, so that the package can be imported without it."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**{"num_labels": LABELS, "vocab_size": WORDS, **settings})
    made: nn.Module = getattr(transformers, f"{family}{head}")(config)
    return made


class Ordered(nn.Module):
    """A model whose inputs do not come first among its arguments: two of them, given in order, by name."""

    def __init__(self, model: nn.Module, second: str) -> None:
        super().__init__()
        self.model = model
        self.second = second

    def forward(self, input_ids: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, **{self.second: second}, use_cache=False).logits
        return logits


_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
_DECODER = {**_ENCODER, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "use_cache": False}


def bert() -> nn.Module:
    return _make("Bert", "ForSequenceClassification", **_ENCODER)


def bert_eager() -> nn.Module:
    return _make("Bert", "ForSequenceClassification", **_ENCODER, attn_implementation="eager")


def distilbert() -> nn.Module:
    return _make(
        "DistilBert", "ForSequenceClassification", dim=32, n_layers=2, n_heads=4, hidden_dim=48,
        max_position_embeddings=32,
    )  # fmt: skip


def roberta() -> nn.Module:
    return _make("Roberta", "ForSequenceClassification", **_ENCODER)


def albert() -> nn.Module:
    return _make("Albert", "ForSequenceClassification", **_ENCODER, embedding_size=16)


def gpt2() -> nn.Module:
    model = _make("GPT2", "LMHeadModel", n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    return Ordered(model, "attention_mask")


def llama() -> nn.Module:
    """With a mask, keys and values are repeated for the queries that share them; without, the kernel does it."""
    return _make("Llama", "ForCausalLM", **_DECODER, num_key_value_heads=2)


def llama_eager() -> nn.Module:
    return _make("Llama", "ForCausalLM", **_DECODER, num_key_value_heads=2, attn_implementation="eager")


def t5_encoder() -> nn.Module:
    return _make("T5", "ForTokenClassification", **_T5)


def t5() -> nn.Module:
    return Ordered(_make("T5", "ForConditionalGeneration", **_T5), "decoder_input_ids")


def whisper_encoder() -> nn.Module:
    return _make(
        "Whisper", "ForAudioClassification", num_mel_bins=8, d_model=32, encoder_layers=2, encoder_attention_heads=4,
        encoder_ffn_dim=48, max_source_positions=12, classifier_proj_size=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16,
    )  # fmt: skip


def wav2vec2() -> nn.Module:
    return _make(
        "Wav2Vec2", "ForSequenceClassification", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, conv_dim=(16, 16), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, classifier_proj_size=16,
    )  # fmt: skip


TEXT: tuple[ZooModel, ...] = (
    *(ZooModel(make.__name__, make, (_IDS, _MASK), WORDS) for make in (bert, bert_eager, distilbert, roberta, albert)),
    *(ZooModel(make.__name__, make, (_IDS, _MASK), WORDS) for make in (gpt2, llama, llama_eager)),
    ZooModel("llama_no_mask", llama, (_IDS,), WORDS),
    ZooModel("t5_encoder", t5_encoder, (_IDS, _MASK), WORDS),
    ZooModel("t5", t5, (_IDS, TensorSpec(name="decoder_input_ids", shape=("batch", 6), dtype="int64")), WORDS),
    ZooModel("whisper_encoder", whisper_encoder, (TensorSpec(name="input_features", shape=("batch", 8, 24)),)),
    ZooModel("wav2vec2", wav2vec2, (TensorSpec(name="input_values", shape=("batch", 400)),)),
)
