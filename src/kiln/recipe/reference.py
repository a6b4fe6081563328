"""The recipe's page of the documentation, written from the fields themselves so that it cannot drift."""

from __future__ import annotations

from typing import Any

from kiln.recipe.fields import Field
from kiln.recipe.presets import PRESETS
from kiln.recipe.recipe import FIELDS
from kiln.recipe.sections import SECTIONS

_HEAD = """\
# The recipe

<!-- Written by `kiln recipe --markdown`; a test compares. Change the sentences in src/kiln/recipe/sections.py. -->

A recipe says what to do, completely. Every field has a default, so a recipe file holds only what differs:

```yaml
model:
  name: resnet18
  img_size: 128
optim:
  lr: 1e-3
training:
  epochs: 20ep
```

`kiln train photos/ --recipe mine.yaml --set training.seed=1` reads it; `kiln recipe` prints all of it,
`kiln recipe FIELD` explains a field, `kiln recipe --schema` prints a JSON schema for editors. A preset is weaker than a
file, and that than flags. Unknown fields are refused with the closest name, wrong values with what was expected, and
settings that contradict each other or have no effect, all at once. In Python:

```python
import kiln

recipe = kiln.Recipe(training={"epochs": "20ep"}).override({"optim.lr": 1e-3})
recipe.save("mine.yaml")
shorter = kiln.Recipe.load("mine.yaml").with_(training={"epochs": 5})  # then: kiln.train("photos/", recipe=shorter)
```

Files are read as YAML 1.2: `1e-4` is a number, `no` and `off` are words, a key given twice is an error, and no tag can
run code.

**Durations** are a number and a unit: `5ep` `200steps` `10%` (of the training) `10m` `2h` `90s`; a bare number means
epochs. Each field says which units it takes.

**How, never what**: fields marked *how* decide how the work is done and not what comes out; `kiln resume` may change
them, and no others.
"""


def to_markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        rows = [_row(field) for field in FIELDS.values() if field.name.startswith(f"{name}.")]
        parts.append(
            f"## {name}\n\n{section.__doc__}\n\n| field | default | takes | |\n| --- | --- | --- | --- |\n"
            + "\n".join(rows)
        )
    presets = [f"| `{name}` | {make.__doc__} |" for name, make in PRESETS.items()]
    parts.append("## Presets\n\n| `--preset` | |\n| --- | --- |\n" + "\n".join(presets))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(field: Field) -> str:
    how = " *how*" if field.how else ""
    takes = field.expects.replace("|", "\\|")
    return f"| `{field.name}` | {_default(field.default)} | {takes} | {field.help}{how} |"


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(_short(item) for item in value)}]`"
    return f"`{_short(value)}`"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
