"""A recipe's schedule: names, settings held to a signature, durations, code that must be trusted."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest

from kiln.errors import SecurityError, UsageError
from kiln.jobs.assembly.resolve import Settings, decide_warmup
from kiln.jobs.assembly.schedules import Clock, bound, make_schedule, maker
from kiln.jobs.draw_schedules import draw_schedules
from kiln.names import SCHEDULES, load_object
from kiln.optim import schedules
from kiln.optim.schedules import Plateau, Rates, Steps, as_rates, with_warmup
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.duration import Duration
from kiln.recipe.schedule_text import WITH_LOWEST_RATE, code_in, parse_schedule
from kiln.recipe.trust import code_names, require_trust

CLOCK = Clock(total_steps=1000, steps_per_epoch=100, eval_every_steps=50)
HERE = __file__


def made(name="cosine", *, warmup="0%", clock=CLOCK, validates=True, optim=None, **values):
    """What a recipe with this schedule is made into."""
    section = {"name": name, "warmup": warmup, **values}
    recipe = Recipe(schedule=section, optim=optim or {})
    settings = Settings({field: recipe[field] for field in FIELDS})
    result = make_schedule(settings, clock, validates=validates)
    unread = {field for field in FIELDS if field.startswith("schedule.")} - settings._read
    assert unread == set()
    return result


def rates(schedule, total=1000):
    return [schedule(step) for step in range(total)]


def halves(step):  # a user's own
    return 0.5 ** (step // 10)


def stairs(total_steps, *, every: Steps, height: float = 0.5, min_fraction: float = 0.0):
    return lambda step: max(height ** (step // every), min_fraction) if step < total_steps else 0.0


class Stairs:
    def __init__(self, *, every: int = 7):
        self.every = every

    def __call__(self, step):
        return 0.9 ** (step // self.every)


def boom(step):
    return 1 / (3 - step)


def takes_nothing():
    return 1.0


def says_nothing(step):
    return None


def never_made(total_steps):
    raise RuntimeError("not today")


def zero_at_first(step):
    return float(step)


def test_every_name_is_there_and_makes_a_schedule():
    needs = {
        "step": {"every": "3ep"},
        "multistep": {"milestones": ["50%", "75%"]},
        "exponential": {"gamma": 0.9, "every": "1ep"},
        "cosine_restarts": {"period": "20%"},
        "lambda": {"functions": f"{HERE}:halves"},
        "multiplicative": {"functions": [f"{HERE}:halves"]},
        "sequential": {"pieces": ["constant", "cosine"], "milestones": "1ep"},
        "chained": {"pieces": ["constant", "cosine"]},
    }
    assert len(SCHEDULES) == 17
    for name in SCHEDULES:
        schedule, plateau = made(name, args=needs.get(name, {}), warmup="10%")
        first = schedules.as_rates(schedule(0)).lr
        assert min(first) > 0 if isinstance(first, tuple) else first > 0
        assert (plateau is not None) == (name == "plateau")


def test_the_lowest_rate_reaches_those_that_say_so():
    takers = {
        name
        for name, target in SCHEDULES.items()
        if "min_fraction" in inspect.signature(load_object(target)).parameters
    }
    assert takers == set(WITH_LOWEST_RATE)
    assert made("cosine", min_lr_fraction=0.2)[0](999) == pytest.approx(0.2)
    assert made("cosine")[0](999) == pytest.approx(0.01)
    assert made("cosine(min_fraction=0.3)")[0](999) == pytest.approx(0.3)
    assert made("plateau", min_lr_fraction=0.2)[1].min_fraction == 0.2
    assert made(f"{HERE}:stairs", args={"every": "1ep"}, min_lr_fraction=0.4)[0](500) == 0.4


def test_settings_stand_in_the_name_or_beside_it():
    beside = rates(made("step", args={"every": "30%", "gamma": 0.3})[0])
    assert beside == rates(made("step(every=30%, gamma=0.3)")[0])
    assert beside == rates(made("step(every=30%)", args={"gamma": 0.3})[0])
    assert beside == rates(schedules.step(1000, every=300, gamma=0.3))


def test_trap_a_bare_number_is_epochs_as_everywhere_in_a_recipe():
    assert rates(made("step(every=3)")[0]) == rates(schedules.step(1000, every=300))
    assert rates(made("step(every=3steps)")[0]) == rates(schedules.step(1000, every=3))


def test_percents_are_of_the_steps_that_the_schedule_has_and_count_from_the_end_of_the_warmup():
    found = made("multistep(milestones=[50%, 75%])", warmup="1ep")[0]
    assert rates(found) == rates(with_warmup(schedules.multistep, 1000, warmup_steps=100, milestones=[451, 676]))
    assert [found(99), found(99 + 450), found(99 + 451)] == [1, 1, pytest.approx(0.1)]


def test_schedules_made_of_others():
    pieces = [partial(schedules.constant, factor=0.1), partial(schedules.wsd, decay=240)]
    wanted = rates(schedules.sequential(1000, pieces=pieces, milestones=[200]))
    text = "sequential(pieces=[constant(factor=0.1), wsd(decay=30%)], milestones=[2ep])"
    assert rates(made(text)[0]) == wanted
    args = {"pieces": ["constant(factor=0.1)", "wsd(decay=30%)"], "milestones": ["2ep"]}
    assert rates(made("sequential", args=args)[0]) == wanted
    with pytest.raises(UsageError, match="'plateau' cannot be part of another schedule"):
        made("chained(pieces=[cosine, plateau])")


def test_your_own():
    assert rates(made(f"{HERE}:halves")[0], 50) == [halves(step) for step in range(50)]
    assert rates(made(f"{HERE}:stairs(every=30%)")[0]) == rates(stairs(1000, every=300, min_fraction=0.01))
    assert rates(made(f"{HERE}:Stairs(every=3)")[0], 50) == rates(Stairs(every=3), 50)
    both = made("lambda", args={"functions": [f"{HERE}:halves", f"{HERE}:zero_at_first"]})[0]
    assert both(3) == Rates((1.0, 3.0))


def test_momentum_by_name():
    schedule = made("one_cycle(momentum=[0.5, 0.8], three_phase=true, anneal=linear)")[0]
    assert rates(schedule) == rates(schedules.one_cycle(1000, momentum=(0.5, 0.8), three_phase=True, anneal="linear"))
    assert made("one_cycle(momentum=null)")[0](10).momentum is None


def test_a_plateau_waits_in_durations_and_counts_evaluations():
    schedule, plateau = made("plateau(reduce=0.5, patience=3ep, cooldown=120steps)", warmup="1ep")
    assert isinstance(plateau, Plateau)
    assert (plateau.reduce, plateau.patience, plateau.cooldown, plateau.min_fraction) == (0.5, 6, 3, 0.01)
    assert rates(schedule) == rates(with_warmup(schedules.constant, 1000, warmup_steps=100))
    with pytest.raises(UsageError, match="without effect: nothing to validate on"):
        made("plateau", validates=False)


def test_the_shape_of_the_warmup():
    found = made("constant", warmup="10steps", warmup_shape="exponential")[0]
    assert rates(found) == rates(with_warmup(schedules.constant, 1000, warmup_steps=10, shape="exponential"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "unknown schedule 'cosin'\n  did you mean: cosine\n"),
        ("step", "the schedule 'step' needs every\n  expected: a duration, such as 3ep, 200steps or 30%\n"),
        ("step(evry=3ep)", "unknown setting 'evry' of the schedule 'step'\n  did you mean: every\n"),
        ("step(every=soon)", "duration = 'soon'\n"),
        ("step(every=30ep)", "every = 3000 steps\n  expected: 1 to 1000: the schedule has no more steps"),
        ("step(every=[3ep])", r"step: every = \['3ep'\]\n  expected: a duration"),
        ("step(every=3ep, gamma=small)", "step: gamma = 'small'\n  expected: a number"),
        ("multistep(milestones=[3ep, 2ep])", r"milestones = \[300, 200\]\n  expected: each later"),
        ("one_cycle(anneal=sine)", "one_cycle: anneal = 'sine'\n  did you mean: linear\n  choices: cos"),
        ("one_cycle(momentum=0.9)", r"one_cycle: momentum = 0.9\n  expected: \[a number, a number\] or null"),
        ("one_cycle(three_phase=1)", "one_cycle: three_phase = 1\n  expected: true or false"),
        ("cosine_restarts(period=1ep, multiplier=1.5)", "multiplier = 1.5\n  expected: a whole number"),
        ("cosine(length=1ep, periodic=maybe)", "expected: true or false"),
        ("chained(pieces=[cosine, 3])", r"chained: pieces = 3\n  expected: a schedule, such as"),
        ("lambda(functions=halves)", "'halves' is not module:name"),
        (f"{HERE}:halves(depth=3)", "unknown setting 'depth' of the schedule '.*'\n  expected: no settings"),
        (f"{HERE}:zero_at_first", "the first step has rate 0"),
        ("cosine(", "schedule 'cosine\\(' cannot be read\n  expected: a name, with settings"),
        ("cosine(3ep)", "schedule 'cosine\\(3ep\\)': '3ep'"),
    ],
)
def test_what_cannot_be_is_told(text, message):
    with pytest.raises(UsageError, match=message):
        made(text)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "step(every=3ep)", "min_lr_fraction": 0.1},
            "min_lr_fraction = 0.1 has no effect with schedule.name = 'step'",
        ),
        ({"name": "cosine(min_fraction=0)", "min_lr_fraction": 0.1}, "schedule.args.min_fraction, which says the same"),
        ({"name": "step(every=3ep)", "args": {"every": "2ep"}}, "every stands in schedule.name and in schedule.args"),
        ({"warmup": "0ep", "warmup_shape": "constant"}, "warmup_shape = 'constant' has no effect without a warmup"),
        ({"warmup": "100%"}, "schedule.warmup = 100% lasts as long as training"),
        ({"warmup": "12ep"}, "schedule.warmup = 12ep lasts as long as training"),
    ],
)
def test_settings_without_effect(section, message):
    with pytest.raises(UsageError, match=message):
        Recipe(schedule=section)


def test_trap_a_warmup_that_outlasts_the_run_is_found_when_steps_are_known():
    with pytest.raises(UsageError, match="a warmup of 60 steps in a training of 50"):
        made("cosine", warmup="60steps", clock=Clock(50, 5, 5))


def test_settings_of_a_function_without_hints_pass_as_they_are():
    def own(total_steps, *, depth, width=2): ...

    assert bound(own, "own", {"depth": "3ep"}, CLOCK) == {"depth": "3ep"}
    with pytest.raises(UsageError, match="the schedule 'own' needs depth\n  expected: a value"):
        bound(own, "own", {}, CLOCK)


def test_a_maker_may_be_asked_for_any_number_of_steps():
    make = maker("wsd", {"decay": "10%"}, CLOCK)
    for total in (20, 200):
        assert rates(make(total), total) == rates(schedules.wsd(total, decay=total // 10), total)


def test_texts_are_read():
    assert parse_schedule(" cosine ") == ("cosine", {})
    assert parse_schedule("a.py:b(x=1, y=[1, 2], z=c(d=[3ep], e=[]), w=null)") == (
        "a.py:b",
        {"x": 1, "y": [1, 2], "z": "c(d=[3ep], e=[])", "w": None},
    )
    assert Duration.parse(parse_schedule("step(every=30%)")[1]["every"]) == Duration(30, "%")


def test_code_in_a_recipe_needs_trust_wherever_it_stands():
    values = {
        "schedule.name": "chained(pieces=[a.py:f(x=1), cosine])",
        "schedule.args": {"deep": [{"functions": ["b.py:g"]}]},
    }
    assert list(code_in([values["schedule.name"], values["schedule.args"]])) == ["a.py:f", "b.py:g"]
    recipe = Recipe(schedule={"name": "lambda", "args": {"functions": ["a.py:f", "b.py:g"]}})
    assert list(code_names(recipe).values()) == ["a.py:f", "b.py:g"]
    with pytest.raises(SecurityError, match=r"--trust a\.py:f"):
        require_trust(recipe, [], named_by="r.yaml")
    require_trust(recipe.with_(model={"trust": ["a.py:f", "b.py:g"]}), [], named_by="r.yaml")
    assert code_names(Recipe(schedule={"name": "step(every=3ep)"})) == {}


def test_a_recipe_with_settings_survives_its_file(tmp_path):
    recipe = Recipe(schedule={"name": "step", "args": {"every": "30%", "gamma": 0.3}, "warmup": "5steps"})
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    assert recipe.override(["schedule.args.gamma=0.5"])["schedule.args"] == {"every": "30%", "gamma": 0.5}
    assert math.isclose(made(recipe["schedule.name"], args=recipe["schedule.args"])[0](999), 0.3**3)


def test_a_shape_of_a_warmup_that_is_not_there():
    with pytest.raises(UsageError, match=r"warmup_shape = 'exponential' has no effect: one_cycle has no warmup"):
        draw_schedules(["one_cycle"], changes={"schedule.warmup_shape": "exponential"})
    draw_schedules(["one_cycle"], changes={"schedule.warmup_shape": "exponential", "schedule.warmup": "5%"})


def test_your_own_as_an_object_in_python():
    from kiln.jobs.asked import asked_for

    recipe = asked_for(None, None, None, {"sched": "step", "sched_args": {"every": "3ep"}}).recipe
    assert (recipe.schedule.name, recipe.schedule.args) == ("step", {"every": "3ep"})
    recipe = asked_for(None, None, None, {"sched": halves}).recipe
    assert rates(made(recipe.schedule.name)[0], 50) == [halves(step) for step in range(50)]
    unnamed = asked_for(None, None, None, {"sched": lambda step: 1 / (1 + step)}).recipe
    assert rates(made(unnamed.schedule.name)[0], 3) == [1, 1 / 2, 1 / 3]
    assert code_names(unnamed) == {}


def test_a_cycle_without_a_length_goes_up_for_a_tenth():
    assert rates(made("cyclic")[0]) == rates(schedules.cyclic(1000, up=100, min_fraction=0.01))
    assert schedules.cyclic(5)(1) == schedules.cyclic(5, up=1)(1)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("boom", 3, "the schedule '.*:boom' fails at its step 3: ZeroDivisionError: division by zero\n"),
        (
            "takes_nothing",
            0,
            "the schedule '.*:takes_nothing' fails at its step 0: TypeError: .*\n  expected: a function",
        ),
        ("says_nothing", 0, "the factor None\n  where: .*:says_nothing, step 0\n"),
        ("never_made", 0, "the schedule '.*:never_made' fails when it is made: RuntimeError: not today"),
    ],
)
def test_trap_a_schedule_of_the_users_that_fails_is_named_with_its_step(name, step, message):
    with pytest.raises(UsageError, match=message):
        made(f"{HERE}:{name}")[0](step)
    with pytest.raises(UsageError, match=message):
        made("chained", args={"pieces": ["constant", f"{HERE}:{name}"]})[0](step)


@pytest.mark.parametrize(("name", "message"), [("boom", "fails at its step 3"), ("says_nothing", "the factor None")])
@pytest.mark.parametrize("kind", ["lambda", "multiplicative"])
def test_so_is_a_function_of_a_group(kind, name, message):
    with pytest.raises(UsageError, match=message):
        made(kind, args={"functions": [f"{HERE}:{name}"]})[0](3)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"name": "sgd", "momentum": 0.0}, r"(?s)optim.momentum = 0.0 has no effect.*momentum=null"),
        ({"betas": [0.5, 0.9]}, r"optim.betas = \[0.5, 0.9\] has no effect: the schedule sets momentum .*to 0.95"),
        ({"groups": {"6": {"betas": [0.5, 0.9]}}}, r"betas of the group '6' = \[0.5, 0.9\] has no effect"),
        ({"name": "muon", "momentum": 0.9}, "optim.momentum = 0.9 has no effect"),
    ],
)
def test_trap_a_momentum_that_the_schedule_overwrites_is_refused(optim, message):
    with pytest.raises(UsageError, match=message):
        made("one_cycle", optim=optim)
    made("one_cycle(momentum=null)", optim=optim)
    made("cosine", optim=optim)


def test_a_momentum_that_is_the_schedules_own_is_none_that_it_overwrites():
    made("one_cycle", optim={"betas": [0.95, 0.99]})
    settings = Settings({field: Recipe(schedule={"name": "one_cycle", "warmup": "0%"})[field] for field in FIELDS})
    settings.decide("optim.betas", (0.9, 0.999), "adamw's own")
    schedule, _ = make_schedule(settings, CLOCK, validates=True)
    assert as_rates(schedule(0)).momentum == pytest.approx(0.95)


@pytest.mark.parametrize("options", [{}, {"name": "plateau"}, {"name": "constant", "warmup": "10%"}])
def test_trap_rprop_does_not_look_at_its_rate_again(options):
    with pytest.raises(
        UsageError, match=r"(?s)has no effect: rprop looks at its rate at the first step only.*--sched constant"
    ):
        made(**options, optim={"name": "rprop"})
    made("constant", optim={"name": "rprop"})
    made(**{"name": "cosine", **options}, optim={"name": "sgd"})


def test_rprop_has_no_warmup_that_nobody_asked_for():
    recipe = Recipe(schedule={"name": "constant"}, optim={"name": "rprop"})
    settings = Settings({field: recipe[field] for field in FIELDS})
    decide_warmup(settings)
    schedule, _ = make_schedule(settings, CLOCK, validates=True)
    assert {as_rates(schedule(step)).lr for step in range(CLOCK.total_steps)} == {1.0}
