"""`record`: turns a named tuple of integers and arrays into something compiled functions take as one pointer.

numba passes each array of a named tuple by value, some thirteen words apiece: with a hundred arrays compilation takes
minutes and every call copies a page of arguments. A numba struct reference is one word. Without numba the named tuple
itself serves.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from pikv_runtime.ledger.jit import HAVE_NUMBA, jit

T = TypeVar("T")

if HAVE_NUMBA:
    from numba.core import cgutils, types
    from numba.core.extending import intrinsic
    from numba.experimental import structref
    from numba.experimental.jitclass.base import imp_dtor

    @structref.register
    class _RecordType(types.StructRef):
        """Numba's type of a record: equal fields make equal types, so compiled code is found again on disk."""

        def __init__(self, fields: Any) -> None:
            super().__init__(fields)
            # The default name spells out all fields, and stands in every symbol: it would cost half the compile time.
            self.name = "Record" + hashlib.sha256(self.name.encode()).hexdigest()[:16]

        def preprocess_fields(self, fields: Any) -> Any:
            return tuple((name, types.unliteral(kind)) for name, kind in fields)

    class _Record(structref.StructRefProxy):  # type: ignore[misc]
        """The Python face: same attributes as the named tuple, `_asdict` and `_replace` included."""

        def _asdict(self) -> dict[str, Any]:
            return self.values._asdict()

        def _replace(self, **changes: Any) -> Any:
            return record(self.values._replace(**changes))

        def __getattr__(self, name: str) -> Any:
            return getattr(object.__getattribute__(self, "values"), name)

    structref.define_boxing(_RecordType, _Record)

    def _allocate(context: Any, builder: Any, kind: Any) -> Any:
        """Reserve a counted, zeroed payload for a record of type `kind`; its fields are released with it."""
        layout = context.data_model_manager[kind.get_data_type()].get_value_type()
        size = context.get_constant(types.uintp, context.get_abi_sizeof(layout))
        counted = context.nrt.meminfo_alloc_dtor(builder, size, imp_dtor(context, builder.module, kind))
        payload = builder.bitcast(context.nrt.meminfo_data(builder, counted), layout.as_pointer())
        builder.store(cgutils.get_null_value(layout), payload)
        reference = context.make_helper(builder, kind)
        reference.meminfo = counted
        return reference._getvalue()

    @intrinsic
    def _pack(typing_context: Any, values: Any) -> Any:
        """Allocate a record and store every field of the named tuple `values` in it."""
        kind = _RecordType(tuple(zip(values.fields, values.types, strict=True)))

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            reference = _allocate(context, builder, kind)
            payload = structref._Utils(context, builder, kind).get_data_struct(reference)
            for at, (name, field) in enumerate(zip(values.fields, values.types, strict=True)):
                value = builder.extract_value(args[0], at)
                context.nrt.incref(builder, field, value)
                setattr(payload, name, value)
            return reference

        return kind(values), generate

    @jit
    def _make(values: Any) -> Any:
        return _pack(values)


def record(values: T) -> T:
    """A record with the fields of the named tuple `values`; arrays are shared, not copied."""
    if not HAVE_NUMBA:
        return values
    packed = _make(values)
    packed.values = values
    return packed  # type: ignore[no-any-return]
