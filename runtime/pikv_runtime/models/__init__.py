"""Models: the embedded MoE, any Hugging Face MoE, and the runner that drives them over the paged cache."""

from pikv_runtime.models.loading import EMBEDDED, load_model

__all__ = ["EMBEDDED", "load_model"]
