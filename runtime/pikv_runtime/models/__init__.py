"""Models: the embedded MoE, any Hugging Face MoE, and the runner that drives them over the paged cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "embedded"


def load_model(name: str) -> tuple[Any, Any]:
    """Load a causal MoE language model (fp32, evaluation mode) and its tokenizer; never from the network.

    Args:
        name: `embedded`, or a directory in Hugging Face format.

    Returns:
        `(model, tokenizer)`.

    Raises:
        ValueError: There is no model under that name, or its files cannot be read; the reason is given.
    """
    path = EMBEDDED if name == "embedded" else Path(name)
    if not (path / "config.json").is_file():
        raise ValueError(f"no model at {name!r}: allowed are 'embedded' and directories with a config.json")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _no_progress_bar():  # a few MB load in a blink
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the model in {path} cannot be loaded: {reason}") from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
