"""`record`: turns a named tuple of integers and arrays into something compiled functions take as one pointer.

numba passes each array of a named tuple by value, some ten words apiece: with a hundred arrays compilation takes
minutes and every call copies a page of arguments. A record is one pointer to a table of words that never changes
(integers as they are; arrays as address and extents). Its arrays are borrowed: the Python face keeps them alive.
They know less than numba's own, and compile and run faster for it: C order, indices from zero up (no wrap-around),
and numbers come out as 64 bits whatever they are stored in, so that a function is compiled for one signature only.
Without numba, plain arrays that hand out Python's numbers serve (the same 64 bits, so the same answers).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pikv_runtime.ledger.jit import HAVE_NUMBA

T = TypeVar("T")

if HAVE_NUMBA:
    import operator

    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.core.datamodel import models
    from numba.core.typing import signature
    from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global
    from numba.extending import (
        NativeValue,
        infer_getattr,
        lower_builtin,
        lower_getattr_generic,
        register_model,
        unbox,
    )
    from numba.np import arrayobj, numpy_support

    INT64 = ir.IntType(64)
    SOURCES = hashlib.sha256()
    """Of this package: compiled code that is cached on disk must not outlive any function that it calls."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        SOURCES.update(path.read_bytes())

    class BorrowedArray(types.Type):
        """An array of a record: C order; if `rows`, a field of structures that lie side by side in axes 0 and 1."""

        def __init__(self, dtype: Any, ndim: int, rows: bool) -> None:
            self.dtype, self.ndim, self.rows = dtype, ndim, rows
            super().__init__(f"borrowed({dtype}, {ndim}d, {rows})")

    @register_model(BorrowedArray)
    class _BorrowedModel(models.StructModel):  # type: ignore[misc]
        def __init__(self, dmm: Any, kind: Any) -> None:
            extents = types.UniTuple(types.int64, kind.ndim)
            members = [("data", types.CPointer(kind.dtype)), ("shape", extents), ("row_bytes", types.int64)]
            super().__init__(dmm, kind, members)

    class RecordType(types.Type):
        """Numba's type of a record: equal fields make equal types, so compiled code is found again on disk."""

        def __init__(self, fields: tuple[tuple[str, Any], ...]) -> None:
            self.fields = dict(fields)
            self.offsets: dict[str, int] = {}
            end = 0
            for name, kind in fields:
                self.offsets[name] = end
                end += _words(kind)
            # A short name: it stands in every symbol, and spelling out all fields would cost half the compile time.
            digest = SOURCES.copy()
            digest.update(repr(fields).encode())
            super().__init__("Record" + digest.hexdigest()[:16])

    register_model(RecordType)(models.OpaqueModel)

    def _words(kind: Any) -> int:
        return 2 + kind.ndim if isinstance(kind, BorrowedArray) else 1

    @infer_getattr
    class _RecordAttribute(AttributeTemplate):  # type: ignore[misc]
        key = RecordType

        def generic_resolve(self, kind: Any, name: str) -> Any:
            return kind.fields.get(name)

    @lower_getattr_generic(RecordType)
    def _load_field(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
        """Load a field from the table; `invariant` lets the optimizer load it once however much is stored between."""
        field = kind.fields[name]
        table = builder.bitcast(value, INT64.as_pointer())
        invariant = builder.module.add_metadata([])
        words = []
        for k in range(_words(field)):
            word = builder.load(builder.gep(table, [INT64(kind.offsets[name] + k)]))
            word.set_metadata("invariant.load", invariant)
            words.append(word)
        if not isinstance(field, BorrowedArray):
            return words[0]
        array = cgutils.create_struct_proxy(field)(context, builder)
        array.data = builder.inttoptr(words[0], array.data.type)
        array.shape, array.row_bytes = cgutils.pack_array(builder, words[1:-1]), words[-1]
        return array._getvalue()

    @infer_getattr
    class _ArrayAttribute(AttributeTemplate):  # type: ignore[misc]
        key = BorrowedArray

        def resolve_shape(self, kind: Any) -> Any:
            return types.UniTuple(types.int64, kind.ndim)

    @lower_getattr_generic(BorrowedArray)
    def _array_shape(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
        return cgutils.create_struct_proxy(kind)(context, builder, value=value).shape

    def _depth(array: Any, index: Any) -> int:
        """How many leading axes `index` fixes; 0 if it is not made of integers."""
        parts = index.types if isinstance(index, types.BaseTuple) else (index,)
        whole = all(isinstance(p, (types.Integer, types.IntEnumMember)) for p in parts)
        return len(parts) if whole and len(parts) <= array.ndim else 0

    def _element(kind: Any) -> Any:
        return types.int64 if isinstance(kind.dtype, types.Integer) else types.float64

    @infer_global(operator.getitem)
    class _GetItem(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            array, index = args
            if not isinstance(array, BorrowedArray) or not (depth := _depth(array, index)):
                return None
            if depth == array.ndim:
                return signature(_element(array), array, index)
            if array.rows:
                return None  # its parts are not arrays of their own
            return signature(types.Array(array.dtype, array.ndim - depth, "C"), array, index)

    @infer_global(operator.setitem)
    class _SetItem(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            array, index, _ = args
            if isinstance(array, BorrowedArray) and _depth(array, index) == array.ndim:
                return signature(types.none, array, index, array.dtype)
            return None

    def _address(context: Any, builder: Any, kind: Any, value: Any, index: Any, at: Any) -> tuple[Any, list[Any]]:
        """Pointer to the element (or subarray) at `index`, and the extents that remain."""
        parts = cgutils.unpack_tuple(builder, at) if isinstance(index, types.BaseTuple) else [at]
        names = index.types if isinstance(index, types.BaseTuple) else (index,)
        array = cgutils.create_struct_proxy(kind)(context, builder, value=value)
        extents = cgutils.unpack_tuple(builder, array.shape)
        data, offset = array.data, INT64(0)
        for axis in range(kind.ndim):
            if axis == 2 and kind.rows:
                data, offset = _row(builder, array, offset), INT64(0)
            if axis > 0:
                offset = builder.mul(offset, extents[axis], flags=["nsw"])
            if axis < len(parts):
                step = context.cast(builder, parts[axis], names[axis], types.int64)
                offset = builder.add(offset, step, flags=["nsw"])
        if kind.ndim == 2 and kind.rows:
            return _row(builder, array, offset), []
        return builder.gep(data, [offset], inbounds=True), extents[len(parts) :]

    def _row(builder: Any, array: Any, number: Any) -> Any:
        """Pointer to the field in structure `number`."""
        base = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        at = builder.gep(base, [builder.mul(number, array.row_bytes, flags=["nsw"])], inbounds=True)
        return builder.bitcast(at, array.data.type)

    @lower_builtin(operator.getitem, BorrowedArray, types.Any)
    def _lower_getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, index = sig.args
        pointer, rest = _address(context, builder, kind, args[0], index, args[1])
        if not rest:
            return context.cast(builder, context.unpack_value(builder, kind.dtype, pointer), kind.dtype, _element(kind))
        view = arrayobj.make_array(sig.return_type)(context, builder)
        itemsize = INT64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        strides = [itemsize]
        for extent in rest[:0:-1]:
            strides.insert(0, builder.mul(strides[0], extent))
        arrayobj.populate_array(view, builder.bitcast(pointer, view.data.type), rest, strides, itemsize, None)
        return view._getvalue()

    @lower_builtin(operator.setitem, BorrowedArray, types.Any, types.Any)
    def _lower_setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, index, element = sig.args
        pointer, _ = _address(context, builder, kind, args[0], index, args[1])
        value = context.cast(builder, args[2], element, kind.dtype)
        context.pack_value(builder, kind.dtype, value, pointer)
        return context.get_dummy_value()

    @unbox(RecordType)
    def _unbox(kind: Any, value: Any, c: Any) -> Any:
        address = c.pyapi.object_getattr_string(value, "address")
        pointer = c.pyapi.long_as_voidptr(address)
        c.pyapi.decref(address)
        return NativeValue(pointer, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))

    def _in_rows(value: Any) -> bool:
        """Whether `value` is a field of an array (n, B) of structures."""
        return bool(value.strides[0] == value.shape[1] * value.strides[1] and value[0, 0].flags.c_contiguous)

    class Record:
        """The Python face: same attributes as the named tuple, `_asdict` and `_replace` included."""

        def __init__(self, values: Any) -> None:
            fields, words = [], []
            for name, value in values._asdict().items():
                if isinstance(value, np.ndarray):
                    rows = not value.flags.c_contiguous
                    assert not rows or _in_rows(value), name
                    fields.append((name, BorrowedArray(numpy_support.from_dtype(value.dtype), value.ndim, rows)))
                    words += [value.ctypes.data, *value.shape, value.strides[1] if rows else 0]
                else:
                    fields.append((name, types.int64))
                    words.append(int(value))
            self.values = values
            self.table = np.array(words, np.int64)
            self.address: int = self.table.ctypes.data
            self._numba_type_ = RecordType(tuple(fields))

        def _asdict(self) -> dict[str, Any]:
            return self.values._asdict()  # type: ignore[no-any-return]

        def _replace(self, **changes: Any) -> Any:
            return Record(self.values._replace(**changes))

        def __getattr__(self, name: str) -> Any:
            return getattr(object.__getattribute__(self, "values"), name)


class PlainArray(np.ndarray[Any, Any]):
    """An array whose elements come out as Python's integers and floats, as they do in compiled functions."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return value.item() if isinstance(value, np.generic) else value


def record(values: T) -> T:
    """A record with the fields of the named tuple `values`; arrays are shared, not copied."""
    if HAVE_NUMBA:
        return Record(values)  # type: ignore[return-value]
    arrays = {name: value for name, value in values._asdict().items() if isinstance(value, np.ndarray)}  # type: ignore[attr-defined]
    return values._replace(**{name: value.view(PlainArray) for name, value in arrays.items()})  # type: ignore[attr-defined, no-any-return]
