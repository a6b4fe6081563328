"""Every error that Kiln raises on purpose: what happened, what was expected, and what to do next.

One family per kind of trouble, each with its own exit status; one stable code per cause, listed in `CODES`
(`docs/errors.md` is written from it). Anything that is not a `KilnError` is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from kiln.language import tr
from kiln.language.patterns import translated

CODES: dict[str, str] = {
    # usage: the command, the recipe or the call asked for something that cannot be
    "E101": "unknown flag, recipe field or value",
    "E102": "a value has the wrong type or is out of range",
    "E103": "settings contradict each other, or one has no effect here",
    "E104": "an optional dependency is missing",
    "E105": "the run folder is in use, or holds another run",
    "E106": "a resumed run was given other settings",
    "E107": "an object given from Python does not fit what Kiln needs",
    "E108": "an unknown model, loss, optimizer, schedule or task",
    "E109": "a device that this machine does not have",
    "E110": "the output exists, or its folder does not",
    "E111": "there is no such run or model",
    # data
    "E201": "no images where data was expected",
    "E202": "an image cannot be read",
    "E203": "a label table is wrong",
    "E204": "too few classes or samples to train or evaluate",
    "E205": "classes of data and model, or of two splits, do not match",
    "E206": "too many bad files",
    "E207": "an archive is damaged or unsafe",
    "E208": "the data changed since the run recorded it",
    "E209": "a data set object cannot be used",
    "E210": "too many pixels, or a header that lies",
    # artefacts: weights, checkpoints, model files, exports
    "E301": "weights cannot be had",
    "E302": "a checkpoint is damaged",
    "E303": "a file is of another kind or a newer version",
    "E304": "weights do not fit the model",
    "E305": "an exported model disagrees with its parent",
    "E306": "state that a checkpoint cannot hold",
    "E307": "a file is damaged",
    "E308": "frozen weights have changed",
    "E309": "a hub refused an upload, or could not be reached",
    # resources
    "E401": "the disk is full or cannot be written",
    "E402": "out of memory at the smallest micro-batch",
    "E403": "too little shared memory or too few file handles",
    # distributed
    "E501": "another process failed or fell silent",
    # numerics
    "E601": "the loss or the gradient is not finite",
    "E602": "the outputs of a model are not finite",
    "E603": "a training does not repeat",
    # security
    "E701": "code named by a file is not trusted",
    "E702": "a file holds code instead of weights",
    "E703": "a path leads outside its folder",
    "E704": "an address is not encrypted",
    # interruption
    "E801": "stopped by a signal; the run can be resumed",
}


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that `word` was probably meant to be, or None."""
    matches = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.55)
    return matches[0] if matches else None


class KilnError(Exception):
    """Something that Kiln understands went wrong.

    Args:
        code: a key of `CODES`.
        what: one line, with the name and the value that were wrong.
        expected: what would have been right.
        where: file, row, rank or step.
        kept: what is safe on disk.
        hint: the next command to run or the thing to change.
        got: with `choices`: the word that was given, so that the closest choice can be suggested.
        choices: what the word could have been.
        details: further lines, such as the first twenty faulty rows.
    """

    exit_code = 70
    http_status = 500
    retryable = False

    def __init__(
        self,
        code: str,
        what: str,
        *,
        expected: str = "",
        where: str = "",
        kept: str = "",
        hint: str = "",
        got: str = "",
        choices: Sequence[str] = (),
        details: Sequence[str] = (),
    ) -> None:
        if code not in CODES:
            raise KeyError(f"error code {code!r} is not in kiln.errors.CODES")
        self.code, self.what, self.expected, self.where = code, what, expected, where
        self.kept, self.hint, self.choices, self.details = kept, hint, tuple(choices), tuple(details)
        self.suggestion = closest(got, choices) if got else None
        super().__init__(self.render())

    @property
    def title(self) -> str:
        """What kind of trouble it is: the text of its code."""
        return CODES[self.code]

    def render(self) -> str:
        """The whole message in the language of the moment, one fact a line."""
        lines = [translated(self.what)]
        if self.where:
            lines.append(tr("  where: {where}", where=self.where))
        if self.expected:
            lines.append(tr("  expected: {expected}", expected=translated(self.expected)))
        if self.suggestion:
            lines.append(tr("  did you mean: {suggestion}", suggestion=self.suggestion))
        if self.choices:
            shown, count = ", ".join(self.choices[:30]), len(self.choices)
            more = tr(" ... ({count} in all)", count=count) if count > 30 else ""
            lines.append(tr("  choices: {shown}{more}", shown=shown, more=more))
        lines += [f"  {translated(line)}" for line in self.details]
        if self.kept:
            lines.append(tr("  kept: {kept}", kept=translated(self.kept)))
        if self.hint:
            lines.append(tr("  next: {hint}", hint=translated(self.hint)))
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild, (type(self), vars(self))


def _rebuild(cls: type[KilnError], fields: dict) -> KilnError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    Exception.__init__(error, error.render())
    return error


class UsageError(KilnError):
    """The command, the recipe or the call asked for something that cannot be."""

    exit_code = 2
    http_status = 400


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__("E104", f"{purpose} needs the package {package!r}", hint=f"pip install 'torchkiln[{extra}]'")


class DataError(KilnError):
    """The data cannot be used as it is."""

    exit_code = 3
    http_status = 422


class ArtifactError(KilnError):
    """Weights, a checkpoint, a model file or an export cannot be used."""

    exit_code = 4


class ResourceError(KilnError):
    """The machine ran out of something."""

    exit_code = 5
    http_status = 503


class DistributedError(KilnError):
    """Another process failed."""

    exit_code = 6
    http_status = 503
    retryable = True


class NumericError(KilnError):
    """A number became infinite or undefined."""

    exit_code = 7


class SecurityError(KilnError):
    """Something asked for a trust that it was not given."""

    exit_code = 8
    http_status = 403


class Preempted(KilnError):  # noqa: N818 (the name of an event, not of a fault)
    """A signal stopped the run after its state was saved; exit status 75, or 130 for Ctrl-C."""

    exit_code = 75
    retryable = True


_FAMILIES: tuple[type[KilnError], ...] = (
    *(UsageError, DataError, ArtifactError, ResourceError, DistributedError, NumericError, SecurityError, Preempted),
)


def family_of(code: str) -> type[KilnError]:
    """The class of errors that a code belongs to; its first digit says which."""
    return _FAMILIES[int(code[1]) - 1]
