"""Hints to the processor: what will be needed in a moment is asked of memory now, many lines at a time.

Lanes are megabytes apart, so a lane's lines are cold whenever its turn comes, and what comes next often hangs on what
was loaded last (a key, its block, the block's row). Hints change no answer; without numba they do nothing.
"""

from __future__ import annotations

from typing import Any

from pikv_runtime.ledger.jit import HAVE_NUMBA, jit
from pikv_runtime.ledger.state import Ledger

LINE = 64  # bytes
SLOT = (1 << 32) - 1  # low word of a heap's entry


def _nothing(*_: Any) -> None:
    """Plain Python takes no hints."""


if HAVE_NUMBA:
    import numba
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic
    from numba.np import arrayobj

    from pikv_runtime.ledger import record

    BYTES, WORD = ir.IntType(8).as_pointer(), ir.IntType(32)

    def _ask(builder: Any, pointer: Any, offset: Any) -> None:
        """Emit a prefetch for reading of the line at `offset` bytes from `pointer`, into all caches."""
        at = builder.gep(builder.bitcast(pointer, BYTES), [offset])
        shape = ir.FunctionType(ir.VoidType(), [BYTES, WORD, WORD, WORD])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [BYTES], shape)
        builder.call(hint, [at, WORD(0), WORD(3), WORD(1)])

    @intrinsic  # type: ignore[misc]
    def _fetch(typing_context: Any, array: Any, offset: Any) -> Any:
        """The line at `offset` bytes in a contiguous array."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = arrayobj.make_array(sig.args[0])(context, builder, args[0]).data
            _ask(builder, data, args[1])
            return context.get_dummy_value()

        return types.void(array, types.int64), emit

    @intrinsic  # type: ignore[misc]
    def fetch_item(typing_context: Any, array: Any, i: Any, at: Any, offset: Any) -> Any:
        """The line at `offset` bytes from element, or row, (i, at) of a record's array."""

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            index = types.UniTuple(types.int64, 2)
            pair = context.make_tuple(builder, index, [args[1], args[2]])
            _ask(builder, record._address(context, builder, sig.args[0], args[0], index, pair)[0], args[3])
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64, types.int64), emit

    if numba.config.DISABLE_JIT:
        _fetch = fetch_item = _nothing
else:
    _fetch = fetch_item = _nothing


@jit
def fetch(values, count: int) -> None:  # type: ignore[no-untyped-def]
    """The first `count` values of a row."""
    for offset in range(0, count * values.itemsize, LINE):
        _fetch(values, offset)


@jit
def fetch_block(s: Ledger, i: int, block: int) -> None:
    """What is known of a block: the beginning of its row."""
    fetch_item(s.block_codec, i, block, 0)
    fetch_item(s.block_codec, i, block, LINE)
    fetch_item(s.block_codec, i, block, 2 * LINE)


@jit
def fetch_listed(s: Ledger, i: int, r: int) -> None:
    """The blocks that slot `r` lists."""
    for p in range(s.slot_pages[i, r]):
        fetch_block(s, i, s.page_block[i, r, p])


@jit
def fetch_free(s: Ledger, i: int, count: int) -> None:
    """The next `count` free block slots."""
    for k in range(max(0, s.free_count[i] - count), s.free_count[i]):
        fetch_block(s, i, s.free_slots[i, k])


@jit
def fetch_victims(s: Ledger, i: int, count: int) -> None:
    """The blocks near the top of the heap, of which most of the next victims come."""
    for k in range(min(count, s.victim_count[i])):
        fetch_block(s, i, s.victims[i, k] & SLOT)


@jit
def fetch_pages(s: Ledger, i: int, r: int) -> None:
    """What an observation reads and writes of slot `r`'s pages."""
    count = s.slot_pages[i, r]
    for layer in range(s.layers):
        fetch(s.page_mass[i, r, layer], count)
        fetch(s.page_last_s[i, r, layer], count)
        fetch(s.page_mass_sum[i, r, layer], count)
        fetch(s.page_reads[i, r, layer], count)
        fetch(s.page_error[i, r, layer], count)
        fetch(s.page_tag[i, r, layer], count)
        fetch(s.page_live[i, r, layer], count)
        fetch(s.page_ghost[i, r, layer], count)
