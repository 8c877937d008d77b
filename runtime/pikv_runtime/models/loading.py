"""Models by name or by path: the embedded one, or any causal MoE in Hugging Face format. Never from the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pikv_runtime.registry import UnknownNameError

EMBEDDED = Path(__file__).parent / "embedded"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model(name: str, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """Load a causal MoE language model, in evaluation mode, and its tokenizer.

    Args:
        name: `embedded`, or a directory in Hugging Face format.
        device: `cpu`, `cuda` (or one such as `cuda:1`), or `auto`: a GPU where there is one.
        dtype: Of the weights and thus of native pages: `float32`, `bfloat16`, `float16`, or `auto`: as saved.

    Returns:
        `(model, tokenizer)`; the tokenizer is None where the directory has none.

    Raises:
        ValueError: There is no model under that name, it is no causal MoE that the runtime can serve, its files cannot
            be read, or there is no such device or dtype; the reason is given.
    """
    path = EMBEDDED if name == "embedded" else Path(name).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(f"no model at {name!r}: allowed are 'embedded' and directories with a config.json")
    target, number = find_device(device), _check_dtype(dtype)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        _check_servable(path)
        with _no_progress_bar():  # a few MB load in a blink
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=number if number == "auto" else getattr(torch, number), local_files_only=True
            )
        has_tokenizer = any((path / file).is_file() for file in _TOKENIZER_FILES)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True) if has_tokenizer else None
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the model in {path} cannot be loaded: {reason}") from error
    return model.eval().to(target), tokenizer


def find_device(device: str) -> str:
    """The device that a flag names: `auto` is a GPU where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    kind = device.partition(":")[0]
    if kind not in DEVICES:
        raise UnknownNameError("device", device, list(DEVICES))
    if kind == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here; allowed are 'cpu' and 'auto'")
    return device


def _check_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, list(DTYPES))
    return dtype


def _check_servable(path: Path) -> None:
    """Refuse what the runner could not serve before its weights are read: the model is built without any.

    Raises:
        ValueError: No causal language model, no gates, or attention that pages cannot hold.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pikv_runtime.models.gates import Gates
    from pikv_runtime.models.geometry import decoder_layers, geometry_of

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    kinds = config.architectures or []
    if kinds and not any(kind.endswith("ForCausalLM") for kind in kinds):
        raise ValueError(f"{', '.join(kinds)} is no causal language model")
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    geometry_of(shell, Gates(decoder_layers(shell)).experts, page_tokens=1)


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
