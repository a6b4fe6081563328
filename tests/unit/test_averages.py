"""Averages of weights against the series that defines them; buffers included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kiln.errors import UsageError
from kiln.jobs.assembly.optimization import make_average
from kiln.jobs.assembly.resolve import Settings
from kiln.optim.averages import Ema, Swa
from kiln.recipe.duration import Duration


def moving(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def walk(model, step):
    """New weights and running statistics, as if a step had been taken."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_closed_form_of_its_series(decay):
    """After T updates: product of all decays times the start, plus each visited weight times what came after it."""
    model = moving()
    ema = Ema(model, decay=decay)
    visited = [{name: tensor.double().clone() for name, tensor in model.state_dict().items()}]
    decays = []
    for step in range(25):
        walk(model, step)
        ema.update()
        visited.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})
        decays.append(min(decay, (1 + step) / (10 + step)))
    assert ema.updates == 25
    shares = [torch.tensor(decays).double().prod()]
    shares += [(1 - decays[t]) * torch.tensor(decays[t + 1 :]).double().prod() for t in range(25)]
    assert float(sum(shares)) == pytest.approx(1.0)
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(share * values[name] for share, values in zip(shares, visited, strict=True))
            assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-6), name


def test_trap_averages_do_not_forget_buffers():
    model = moving()
    ema = Ema(model, decay=0.5)
    start = ema.module[1].running_mean.clone()
    walk(model, 3)
    ema.update()
    first = 1 / 10
    assert torch.allclose(ema.module[1].running_mean, first * start + (1 - first) * model[1].running_mean)
    assert ema.module[1].num_batches_tracked == model[1].num_batches_tracked == 1


def test_early_averages_are_not_dominated_by_the_start():
    model = moving()
    ema = Ema(model, decay=0.9999)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    for _ in range(10):
        ema.update()
    assert torch.allclose(ema.module[0].weight, torch.full((3, 2), 5.0), atol=1e-3)


def test_the_average_is_a_model_of_its_own_in_eval_mode():
    model = moving().train()
    ema = Ema(model, decay=0.9)
    walk(model, 1)
    assert not torch.equal(ema.module[0].weight, model[0].weight)
    assert not ema.module.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_resumed_average_goes_on_as_the_undisturbed_one():
    model, other = moving(), moving(seed=4)
    whole, resumed = Ema(model, decay=0.99), Ema(other, decay=0.99)
    for step in range(4):
        walk(model, step)
        whole.update()
    state = {"updates": whole.updates, "model": {k: v.clone() for k, v in whole.state()["model"].items()}}
    other.load_state_dict(model.state_dict())
    resumed.load_state(state)
    for step in range(4, 9):
        for net, average in ((model, whole), (other, resumed)):
            walk(net, step)
            average.update()
    assert whole.updates == resumed.updates == 9
    for mine, theirs in zip(whole.module.state_dict().values(), resumed.module.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_an_update_that_the_device_decides_is_the_same_one_or_none(decay):
    """On an accelerator the host does not know whether the step was good."""
    model, other = moving(), moving()
    decided, plain = Ema(model, decay=decay), Ema(other, decay=decay)
    for step, bad in enumerate([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]):
        before = {name: tensor.clone() for name, tensor in decided.module.state_dict().items()}
        if not bad:
            walk(model, step)
            walk(other, step)
            plain.update()
        decided.update(unless=torch.tensor(bad))
        if bad:
            assert all(torch.equal(before[name], tensor) for name, tensor in decided.module.state_dict().items())
    assert decided.state()["updates"] == plain.state()["updates"] == 4
    for mine, theirs in zip(decided.module.state_dict().values(), plain.module.state_dict().values(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "every"), [(1, 1), (3, 4), (7, 2)])
def test_swa_is_the_plain_mean_of_the_weights_it_visits(start, every):
    model = moving()
    swa = Swa(model, start=start, every=every)
    visited = []
    for step in range(1, 16):
        walk(model, step)
        swa.update()
        if step >= start and (step - start) % every == 0:
            visited.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})
        assert swa.model is (swa.module if visited else model)
        if visited:
            for name, tensor in swa.module.named_parameters():
                mean = torch.stack([values[name] for values in visited]).mean(0)
                assert torch.allclose(tensor.double(), mean, rtol=0, atol=1e-6)
    assert swa.updates == len(visited)


def test_swa_agrees_with_torch():
    model = moving()
    swa, reference = Swa(model, start=1, every=1), torch.optim.swa_utils.AveragedModel(model)
    for step in range(8):
        walk(model, step)
        swa.update()
        reference.update_parameters(model)
    for own, theirs in zip(swa.module.parameters(), reference.module.parameters(), strict=True):
        assert torch.allclose(own, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad_steps", [set(), {2}, {2, 3}])
def test_swa_leaves_out_steps_that_were_refused_without_reading_the_flag(bad_steps):
    model = moving()
    swa, seen = Swa(model, start=2, every=1), []
    for step in range(1, 6):
        walk(model, step)
        swa.update(unless=torch.tensor(float(step in bad_steps)))
        if step >= 2 and step not in bad_steps:
            seen.append(model[0].weight.double().clone())
    assert int(swa.updates) == len(seen)
    assert torch.allclose(swa.module[0].weight.double(), torch.stack(seen).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 4, 5, 9])
def test_swa_goes_on_from_its_state(cut):
    whole_model, model = moving(), moving()
    whole, swa = (Swa(m, start=4, every=3) for m in (whole_model, model))
    for step in range(1, 13):
        walk(whole_model, step)
        whole.update()
        walk(model, step)
        swa.update()
        if step == cut:
            state = {"average": swa.state(), "model": model.state_dict()}
            resumed = Swa(model, start=4, every=3)
            resumed.load_state(state["average"])
            began = cut >= 4
            assert (swa.tensors_of(state) is state["average"]["model"]) == began
            swa = resumed
    assert swa.state()["updates"] == whole.state()["updates"] == 3
    for a, b in zip(swa.module.state_dict().values(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_swa_that_never_begins_is_refused():
    with pytest.raises(UsageError, match="every = 0"):
        Swa(moving(), start=1, every=0)


@pytest.mark.parametrize("decay", [1.5, 1.0, -1.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UsageError, match=r"(?s)decay = .*at least 0, below 1"):
        Ema(moving(), decay=decay)


@pytest.mark.parametrize(
    ("start", "visited"),
    [
        ("75%", [56, 63, 70]),
        ("53steps", [56, 63, 70]),
        ("0", [7 * n for n in range(1, 11)]),
        ("100%", [70]),
        ("9ep", [63, 70]),
    ],
)
def test_trap_the_plain_mean_is_of_ends_of_epochs_wherever_its_start_falls(start, visited):
    model = moving()
    values = {"training.ema_decay": 0.0, "training.swa_start": Duration.parse(start)}
    swa = make_average(Settings(values), model, total_steps=70, steps_per_epoch=7)
    seen, updates = [], 0
    for step in range(1, 71):
        walk(model, step)
        swa.update()
        if int(swa.updates) > updates:
            seen.append(step)
        updates = int(swa.updates)
    assert seen == visited


def test_a_mean_without_an_end_of_an_epoch_in_it_is_refused():
    values = {"training.ema_decay": 0.0, "training.swa_start": Duration.parse("20steps")}
    with pytest.raises(UsageError, match=r"(?s)ends at step 20, before step 21.*ends of epochs"):
        make_average(Settings(values), moving(), total_steps=20, steps_per_epoch=7)
