"""Tensors behind the ledger: pages by codec, centroids, exact shadows of audited requests."""

from pikv_runtime.cache.centroids import CentroidTable
from pikv_runtime.cache.directory import PageDirectory
from pikv_runtime.cache.shadow import Shadows
from pikv_runtime.cache.store import PagedStore

__all__ = ["CentroidTable", "PageDirectory", "PagedStore", "Shadows"]
