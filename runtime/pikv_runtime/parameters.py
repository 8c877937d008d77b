"""Parameters in specs: `key=value,...` into the fields of a dataclass, typed as their defaults are."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pikv_runtime.registry import UnknownNameError

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_parameters(cls: type[Any], kind: str, params: str, apart: tuple[str, ...] = ()) -> dict[str, Any]:
    """Values for the fields of `cls` from `params`; fields named in `apart` are no parameters.

    Raises:
        UnknownNameError: no such parameter.
        ValueError: given twice, or ill-typed.
    """
    known = {f.name: f for f in fields(cls) if f.init and f.name not in apart}
    values: dict[str, Any] = {}
    for item in filter(None, params.split(",")):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in known:
            raise UnknownNameError(f"parameter of {kind!r}", key, sorted(known))
        if key in values:
            raise ValueError(f"{kind}: parameter {key!r} is given twice")
        values[key] = _value(f"{kind}: {key}", text, type(known[key].default))
    return values


def _value(name: str, text: str, kind: type[Any]) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _FLAGS:
            raise ValueError(f"{name}={text!r}: allowed {', '.join(_FLAGS)}")
        return _FLAGS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be a number ({kind.__name__})") from None
