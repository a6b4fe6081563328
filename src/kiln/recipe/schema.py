"""The JSON schema of a recipe file, for editors and other programs."""

from __future__ import annotations

from typing import Any

from kiln.recipe.check import model_of
from kiln.recipe.fields import fields_of
from kiln.recipe.load import KIND, VERSION
from kiln.recipe.sections import SECTIONS


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file; `Recipe.schema()` is its public face."""
    sections = {}
    for name, section in SECTIONS.items():
        part = model_of(section).model_json_schema()
        part.pop("title", None)
        for key, field in fields_of(section, name).items():
            if field.is_open_list:  # one value may stand for a list of one
                wanted = part["properties"][key]
                wanted["anyOf"] = [wanted["items"], {"type": wanted.pop("type"), "items": wanted.pop("items")}]
        sections[name] = part
    head = {
        "kind": {"const": KIND, "default": KIND},
        "version": {"type": "integer", "minimum": 1, "maximum": VERSION, "default": VERSION},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kiln recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": head | sections,
    }
