"""Models back to what a file would say: only what was set, durations and sizes with their units."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gwcore.config.units import Duration, Rate, Size, format_duration


def _is(annotation: Any, metadata: list[Any], wanted: Any) -> bool:
    return any(
        m is w
        for m in [*metadata, *[x for a in getattr(annotation, "__args__", ()) for x in getattr(a, "__metadata__", ())]]
        for w in wanted.__metadata__
    )


def dump(model: BaseModel) -> dict[str, Any]:
    """A dictionary for YAML or JSON; unset keys are left out."""
    out: dict[str, Any] = {}
    for name in model.model_fields_set:
        field = type(model).model_fields[name]
        out[name] = _value(getattr(model, name), field)
    return out


def _value(value: Any, field: Any = None) -> Any:
    if isinstance(value, BaseModel):
        return dump(value)
    if isinstance(value, list):
        return [_value(v) for v in value]
    if isinstance(value, dict):
        return {k: _value(v) for k, v in value.items()}
    if field is not None and isinstance(value, float) and _is(field.annotation, field.metadata, Duration):
        return format_duration(value)
    if (
        field is not None
        and isinstance(value, int)
        and not value
        and (_is(field.annotation, field.metadata, Size) or _is(field.annotation, field.metadata, Rate))
    ):
        return "off"
    return value
