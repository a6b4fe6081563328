"""How long: `5ep`, `200steps`, `10%`, `10m`; written in the unit a person thinks in, counted in steps by the loop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from kiln.errors import UsageError

SPELLINGS = {
    "ep": ("ep", "epoch", "epochs"),
    "steps": ("step", "steps"),
    "%": ("%", "percent"),
    "h": ("h", "hour", "hours"),
    "m": ("m", "min", "minute", "minutes"),
    "s": ("s", "sec", "second", "seconds"),
}
SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_UNIT_OF = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in spellings}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*", re.IGNORECASE)
_EXPECTED = "a number and a unit, such as 5ep, 200steps, 10%, 10m (also 2h, 90s); a bare number means epochs"


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training: a value of at least 0 and one of the units `ep steps % h m s`."""

    value: float
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in SPELLINGS:
            raise UsageError("E102", f"duration unit = {self.unit!r}", got=self.unit, choices=tuple(SPELLINGS))
        if not (math.isfinite(self.value) and self.value >= 0):
            raise UsageError("E102", f"duration = {self.value!r}", expected="a finite number of at least 0")
        if self.unit == "steps" and self.value != int(self.value):
            raise UsageError("E102", f"duration = {self.value!r} steps", expected="a whole number of steps")

    @classmethod
    def parse(cls, text: str | float | Duration) -> Duration:
        """Read a duration; a bare number means epochs.

        Raises: UsageError: not a number with a unit that Kiln knows.
        """
        if isinstance(text, Duration):
            return text
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            return cls(float(text), "ep")
        found = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise UsageError("E102", f"duration = {text!r}", expected=_EXPECTED)
        number, word = found[1], found[2].lower()
        unit = _UNIT_OF.get(word, "") if word else "ep"
        if not unit:
            raise UsageError("E102", f"duration = {text!r}", expected=_EXPECTED, got=word, choices=tuple(_UNIT_OF))
        return cls(float(number), unit)

    @property
    def seconds(self) -> float | None:
        """The length on the clock, or None for a length counted in training."""
        return self.value * SECONDS[self.unit] if self.unit in SECONDS else None

    def to_steps(self, *, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """The length in optimizer steps, rounded to the nearest; never 0 unless the duration is.

        Args:
            steps_per_epoch: optimizer steps in one epoch, >= 1.
            total_steps: length of the whole training; needed by `%`.
        Raises: UsageError: time on the clock, or a share of a length that is not given: neither is a number of steps.
        """
        if self.unit == "steps":
            return int(self.value)
        if self.unit == "ep":
            exact = self.value * steps_per_epoch
        elif self.unit == "%" and total_steps is not None:
            exact = self.value / 100 * total_steps
        elif self.unit == "%":
            raise UsageError("E102", f"duration = {self}", expected="epochs or steps: it is a share of nothing here")
        else:
            raise UsageError(
                "E102", f"duration = {self}", expected="epochs, steps or %: time on the clock is no number of steps"
            )
        return max(1, math.floor(exact + 0.5)) if self.value else 0

    def __str__(self) -> str:
        number = f"{self.value:.15g}"
        return f"{number}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_parse_for_pydantic)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        units = "|".join(_UNIT_OF)
        pattern = rf"^\s*(\d+(\.\d*)?|\.\d+)\s*({units})?\s*$"
        return {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "minimum": 0}]}


def _parse_for_pydantic(value: Any) -> Duration:
    try:
        return Duration.parse(value)
    except UsageError as error:
        raise ValueError(error.expected) from error
