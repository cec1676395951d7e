"""The supported model families. A new one is a file beside this, a line here, and one in `learner.model.families`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rlsys.models.families import internvl, qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl, qwen3_vl_moe
from rlsys.models.families.family import Family

FamilyName = Literal["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "qwen3_5"]
DEFAULT: FamilyName = "qwen2_5_vl"
"""Family of a tiny model where none is named."""

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (qwen2_5_vl, qwen2_vl, qwen3_vl, qwen3_vl_moe, internvl, qwen3_5)
}
"""`model_type` of config.json -> family."""


def family_named(model_type: str) -> Family:
    """Return the family with this `model_type`. Raises KeyError with the list of supported ones."""
    if model_type not in FAMILIES:
        known = ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
        hints = {name: f"; {hint}" for family in FAMILIES.values() for name, hint in family.other_layouts.items()}
        raise KeyError(
            f"model_type={model_type!r} is no supported model family; supported are {known}{hints.get(model_type, '')}"
        )
    return FAMILIES[model_type]
