"""L2-SP: the gradient of the paper, once per step however the batch is cut, and the same after a resume."""

import copy

import pytest
import torch
from small_training import Batches, differing, make_state, make_step, pictures
from small_training import frozen as picture_of

from kiln.batch import Batch
from kiln.engine.codec import decode, encode
from kiln.engine.fit import fit
from kiln.engine.starting_point import StartingPoint, with_penalty
from kiln.losses import LossTerms

HEAD = ("6.weight", "6.bias")


def pulled(tiny_model, *, micro=None, norm=False, **settings):
    model = tiny_model(norm=norm, drop=0.0)
    start = StartingPoint(model, **{"strength": 0.3, "head": HEAD, "head_strength": 0.1, **settings})
    state, step = make_state(model, opt="sgd", lr=0.1), make_step(micro_batch_size=micro)
    state.parts["starting_point"] = start
    step.forward_loss = with_penalty(step.forward_loss, start.penalty)
    return state, step, start


def test_the_gradient_is_that_of_the_paper(tiny_model):
    state, _, start = pulled(tiny_model)
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter += 0.5
    start.penalty().backward()
    for name, parameter in state.model.named_parameters():
        expected = 0.1 * parameter if name in HEAD else 0.3 * (parameter - before[name])
        torch.testing.assert_close(parameter.grad, expected.detach())


def test_nothing_pulls_where_it_starts_nor_what_is_frozen(tiny_model):
    state, _, start = pulled(tiny_model, head_strength=0.0)
    assert float(start.penalty().detach()) == 0.0
    with torch.no_grad():
        state.model[0].weight += 1.0
    assert float(start.penalty().detach()) == pytest.approx(0.15 * state.model[0].weight.numel())
    state.model[0].weight.requires_grad_(False)
    assert float(start.penalty().detach()) == 0.0


@pytest.mark.parametrize("micro", [2, 3, 8])
def test_any_cut_of_the_batch_gives_the_same_update(tiny_model, micro):
    images, labels = pictures(8)
    weights = torch.tensor([1.0, 0, 2, 1, 1, 3, 1, 1])
    models = []
    for size in (None, micro):
        state, step, _ = pulled(tiny_model, micro=size)
        for _ in range(4):
            measured = step(state, Batch(images, labels, weights=weights))
            state.step += 1
        models.append((state.model.state_dict(), float(measured.loss)))
    (one, loss_one), (other, loss_other) = models
    assert loss_one == pytest.approx(loss_other, abs=1e-6)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


def test_a_resume_pulls_to_the_same_place(tiny_model):
    def run(state, step, total):
        list(fit(state, step, Batches(*pictures(20), 5), total_steps=total))

    whole, step, _ = pulled(tiny_model)
    run(whole, step, 8)
    first, step, _ = pulled(tiny_model)
    run(first, step, 3)
    tree = decode(*encode(first.state()))
    second, step, start = pulled(tiny_model)
    with torch.no_grad():
        for value in start._start.values():
            value.zero_()  # a resumed run begins with other weights: the checkpoint brings the start
    second.load_state(tree)
    run(second, step, 8)
    assert differing(picture_of(whole), picture_of(second)) == []


def test_the_value_is_added_once_per_sample_and_keeps_weights(tiny_model):
    terms = LossTerms(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    added = with_penalty(lambda state, batch: terms, lambda: torch.tensor(0.5))(None, [0, 0])
    assert added.values.tolist() == [1.5, 2.5]
    assert added.weights is terms.weights


def test_coupled_losses_stay_coupled(tiny_model):
    def forward_loss(state, batch):
        return torch.tensor(1.0)

    forward_loss.coupled = True
    wrapped = with_penalty(copy.copy(forward_loss), lambda: torch.tensor(0.0))
    assert wrapped.coupled
