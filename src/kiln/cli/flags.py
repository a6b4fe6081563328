"""The few flags that name recipe fields, and how everything a user may write becomes them.

`--set field=value`, peers' spellings and `key=value` are all rewritten to the one flag (or `--set`) of their field
before parsing, so that of two that name the same field the later wins, whatever their spelling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kiln.cli.app import split_key_value
from kiln.errors import UsageError, closest
from kiln.recipe import FIELDS
from kiln.recipe.aliases import KNOWN, MAPPED, OFF, Meaning, kebab, own_value, translate


@dataclass(frozen=True)
class Flag:
    """A flag of `kiln train` and the recipe field that it sets."""

    names: tuple[str, ...]
    field: str
    metavar: str

    @property
    def parameter(self) -> str:
        """The name under which the parser hands the value over."""
        return self.field.replace(".", "__")

    @property
    def help(self) -> str:
        """The field's own help, with its default."""
        default = FIELDS[self.field].default
        values = default if isinstance(default, tuple) else (default,)
        shown = ", ".join(str(value) for value in values if value is not None)
        return f"{FIELDS[self.field].help} [{shown}]" if shown else FIELDS[self.field].help


def _flag(names: str, name: str, metavar: str = "") -> Flag:
    return Flag(tuple(names.split()), name, metavar or "|".join(FIELDS[name].choices))


FLAGS = (
    _flag("--model", "model.name", "NAME"),
    _flag("--weights", "model.weights", "WHICH"),
    _flag("--img-size", "model.img_size", "PX"),
    _flag("--drop", "model.drop", "P"),
    _flag("--drop-path", "model.drop_path", "P"),
    _flag("--trust", "model.trust", "NAME"),
    _flag("--task", "task.name", "NAME"),
    _flag("--root", "data.root", "FOLDER"),
    _flag("--decisions", "data.decisions", "FILE"),
    _flag("--channels", "data.channels", "N"),
    _flag("--resize", "data.resize"),
    _flag("--val-fraction", "data.val_fraction", "SHARE"),
    _flag("--test-fraction", "data.test_fraction", "SHARE"),
    _flag("--folds", "data.folds", "N"),
    _flag("--bad-files", "data.bad_files"),
    _flag("-j --workers", "data.workers", "N"),
    _flag("--cache", "data.cache"),
    _flag("--cache-size", "data.cache_size", "SIZE"),
    _flag("--sampler", "data.sampler", "NAME"),
    _flag("--aug", "augment.policy", "POLICY"),
    _flag("--mixup", "augment.mixup", "ALPHA"),
    _flag("--cutmix", "augment.cutmix", "ALPHA"),
    _flag("--loss", "loss.name", "NAME"),
    _flag("--smoothing", "loss.smoothing", "SHARE"),
    _flag("--opt", "optim.name", "NAME"),
    _flag("--lr", "optim.lr", "RATE"),
    _flag("--weight-decay --wd", "optim.weight_decay", "X"),
    _flag("--momentum", "optim.momentum", "X"),
    _flag("--clip-grad", "optim.clip_norm", "NORM"),
    _flag("--sched", "schedule.name", "NAME"),
    _flag("--warmup", "schedule.warmup", "DURATION"),
    _flag("--epochs", "training.epochs", "DURATION"),
    _flag("-b --batch-size", "training.batch_size", "N"),
    _flag("--micro-batch-size", "training.micro_batch_size", "N"),
    _flag("--precision", "training.precision"),
    _flag("--model-ema-decay", "training.ema_decay", "X"),
    _flag("--monitor", "training.monitor", "METRIC"),
    _flag("--patience", "training.patience", "DURATION"),
    _flag("--seed", "training.seed", "N"),
    _flag("--determinism", "run.determinism"),
    _flag("--checkpoint-every", "checkpoint.every", "DURATION"),
    _flag("--output", "run.output", "FOLDER"),
    _flag("--name", "run.name", "NAME"),
    _flag("--device", "run.device", "NAME"),
    _flag("--strategy", "run.strategy"),
    _flag("--processes", "run.processes", "N"),
)
# flags of the command itself: name -> whether a value follows
OWN = {
    "--preset": True, "--recipe": True, "--set": True, "--resume": True, "--extend": True, "--dry-run": False,
    "-q": False, "--quiet": False, "--json": False, "-h": False, "--help": False,
}  # fmt: skip

_OF_NAME = {name: flag for flag in FLAGS for name in flag.names}
_OF_FIELD = {flag.field: flag for flag in FLAGS}


@dataclass
class Canonical:
    """Arguments in Kiln's own spelling, and what to tell about those that were written otherwise.

    Attributes:
        verb: whose arguments they are.
        own: flags of that verb which set no field: name -> whether a value follows.
    """

    verb: str
    own: Mapping[str, bool]
    arguments: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def set(self, name: str, value: str) -> None:
        """Set a recipe field, by its own flag if it has one."""
        flag = _OF_FIELD.get(name)
        if flag is None:
            self.arguments += ["--set", f"{name}={value}"]
        else:
            self.arguments.append(f"{flag.names[-1]}={own_value(name, value)}")

    def adopt(self, meaning: Meaning) -> None:
        """Take a peer's setting over, with a note."""
        if meaning.field is not None:
            self.set(meaning.field, meaning.value)
        self.notes.append(meaning.note)


def canonical(arguments: Sequence[str], *, verb: str = "train", own: Mapping[str, bool] | None = None) -> Canonical:
    """Rewrite the arguments of a verb that takes a recipe to its own flags.

    Args:
        arguments: what the user wrote.
        verb: named in messages.
        own: flags that set no field, besides those of `OWN`: name -> whether a value follows.
    Raises: UsageError: a flag or key that neither Kiln nor a peer knows (the closest is suggested), or one that Kiln
        does not have yet.
    """
    done = Canonical(verb, {**OWN, **(own or {})})
    waiting = _Tokens(arguments)
    for token in waiting:
        if token == "--":
            done.arguments += ["--", *waiting]
        elif token.startswith("--"):
            _take_flag(token, waiting, done)
        elif token.startswith("-") and len(token) > 1:
            _take_short(token, waiting, done)
        else:
            _take_word(token, done)
    return done


class _Tokens(Iterator[str]):
    """Arguments one by one, with a look at the next."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._left = list(reversed(arguments))

    def __next__(self) -> str:
        if not self._left:
            raise StopIteration
        return self._left.pop()

    @property
    def next(self) -> str:
        """The next argument, without taking it; empty at the end."""
        return self._left[-1] if self._left else ""


def _value_of(name: str, waiting: _Tokens, done: Canonical) -> str:
    value = next(waiting, None)
    if value is None:
        raise UsageError("E101", f"{name} needs a value", hint=f"kiln {done.verb} --help")
    return value


def _take_flag(token: str, waiting: _Tokens, done: Canonical) -> None:
    name, equals, inline = token.partition("=")
    if name in _OF_NAME:
        done.set(_OF_NAME[name].field, inline if equals else _value_of(name, waiting, done))
    elif name in done.own:
        _take_own(name, inline if equals else None, waiting, done)
    elif kebab(name) in KNOWN:
        done.adopt(translate(name, [inline] if equals else _peer_values(name, waiting, done)))
    else:
        raise _unknown(name, done, [*_OF_NAME, *done.own, *(f"--{known}" for known in MAPPED)])


def _take_own(name: str, inline: str | None, waiting: _Tokens, done: Canonical) -> None:
    if not done.own[name]:
        done.arguments += [name] if inline is None or inline.lower() not in OFF else []
        return
    value = inline if inline is not None else _value_of(name, waiting, done)
    target, equals, setting = value.partition("=")
    if name == "--set" and equals and target.strip() in _OF_FIELD:
        done.set(target.strip(), setting.strip())
    else:
        done.arguments.append(f"{name}={value}")


def _peer_values(name: str, waiting: _Tokens, done: Canonical) -> list[str]:
    """The values that follow a peer's flag: as many as that peer's command takes."""
    alias = MAPPED.get(kebab(name))
    if alias is None:  # not available: only whether it is switched off matters
        return [next(waiting)] if waiting.next and waiting.next.lower() in OFF else []
    if alias.bare is not None:
        return []
    return [_value_of(name, waiting, done) for _ in range(alias.num_values)]


def _take_short(token: str, waiting: _Tokens, done: Canonical) -> None:
    name, attached = token[:2], token[2:].removeprefix("=")
    if name in _OF_NAME:
        done.set(_OF_NAME[name].field, attached or _value_of(name, waiting, done))
    elif token in done.own:
        done.arguments.append(token)
    else:
        raise _unknown(token, done, [*_OF_NAME, *done.own])


def _take_word(token: str, done: Canonical) -> None:
    pair = split_key_value(token)
    if pair is None:
        done.arguments.append(token)
        return
    key, value = pair
    flag = f"--{kebab(key)}"
    if key in FIELDS:
        done.set(key, value)
    elif flag in _OF_NAME:
        done.set(_OF_NAME[flag].field, value)
    elif flag in done.own:
        _take_own(flag, value, _Tokens(()), done)
    elif kebab(key) in KNOWN:
        done.adopt(translate(key, [value]))
    else:
        names = [name.lstrip("-") for name in (*_OF_NAME, *done.own) if name.startswith("--")]
        raise _unknown(key, done, [*names, *MAPPED, *FIELDS])


def _unknown(name: str, done: Canonical, choices: Sequence[str]) -> UsageError:
    meant = closest(name, choices)
    what = f"unknown flag {name}: did you mean {meant}?" if meant else f"unknown flag {name}"
    return UsageError(
        "E101", what, hint=f"kiln {done.verb} --help lists the flags; every field goes by --set section.field=value"
    )
