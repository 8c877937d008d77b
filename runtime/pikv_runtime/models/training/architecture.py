"""The architecture and the byte-level tokenizer of the embedded model."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

BOS, EOS, PAD = 256, 257, 258
VOCAB_SIZE = 264
MAX_POSITIONS = 4096
EMBEDDED_DIRECTORY = Path(__file__).resolve().parent.parent / "embedded"


def embedded_config() -> Any:
    """Return the Hugging Face configuration of the embedded model.

    Returns:
        A `MixtralConfig`: four layers, grouped-query attention, eight experts of which two are active.
    """
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=160,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        num_local_experts=8,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.02,
        initializer_range=0.04,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def build_tokenizer() -> Any:
    """Return a byte-level tokenizer whose token id of a byte is the value of that byte.

    Returns:
        A `PreTrainedTokenizerFast` with 256 bytes and the specials `<bos>`, `<eos>` and `<pad>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {char: byte for byte, char in _byte_characters().items()}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def save_pretrained(model: Any, directory: Path) -> None:
    """Write a model and its tokenizer as bfloat16 Hugging Face files, each replaced atomically.

    Args:
        model: A `MixtralForCausalLM` in any floating dtype; it is left unchanged.
        directory: The target directory; it is created when missing.
    """
    import copy

    import torch

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(scratch)
        build_tokenizer().save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)
            os.replace(file, directory / file.name)


def _byte_characters() -> dict[int, str]:
    """Map each byte to the printable character by which byte-level BPE names it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return table
