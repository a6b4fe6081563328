"""Frozen means frozen: nothing in a frozen part moves, whatever the loop around it does; and blocks cut any network."""

import copy

import pytest
import timm
import torch
import torchvision
from small_training import differing, make_state, make_step, pictures
from torch import nn

from kiln.batch import Batch
from kiln.engine.codec import encode
from kiln.errors import ArtifactError, UsageError
from kiln.models.blocks import atoms_of, ordered_blocks, running_norms, select
from kiln.models.freeze import freeze, frozen_atoms, unfreeze


class Everything(nn.Module):
    """A user's own network with every layer whose forward pass changes something, or depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 3, 8, 8))
        self.constant = nn.Parameter(torch.ones(3, 1, 1), requires_grad=False)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8, affine=False),
            nn.Conv2d(8, 8, 1),
            nn.InstanceNorm2d(8, track_running_stats=True),
            nn.Conv2d(8, 8, 1),
            timm.layers.BatchNormAct2d(8),
            nn.Conv2d(8, 8, 1),
            nn.SyncBatchNorm(8),
            nn.Dropout2d(0.5),
            timm.layers.DropPath(0.5),
        )
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(288, 6), nn.BatchNorm1d(6))
        self.volume = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 4)

    def forward(self, images):
        features = self.flat(self.body((images + self.place) * self.constant))
        volume = self.volume(features[:, None, None, None])
        return self.fc(self.drop(volume.flatten(1)))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Everything()


def tensors(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train(model, optimizer, *, steps=3, keep_gradients=False):
    images, labels = pictures(8)
    for _ in range(steps):
        model.train()
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=not keep_gradients)
        loss.backward()
        optimizer.step()


def heavy_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def moved(before, model):
    return {name.rpartition(".")[0] or name for name in differing(before, tensors(model))}


def test_what_tutorials_do_moves_frozen_layers(network):
    """The trap itself, so that the tests below mean something."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    network.eval()
    before = tensors(network)
    train(network, heavy_sgd(network.parameters()))
    assert moved(before, network) == {"fc", "body.1", "body.3", "body.5", "body.7", "body.9", "flat.2", "volume.1"}
    assert network.body[10].training


def test_a_frozen_backbone_does_not_move_and_is_exact(network):
    frozen, before = freeze(network, "backbone"), tensors(network)
    train(network, heavy_sgd(network.parameters()))
    assert moved(before, network) == {"fc"}
    network.train()
    assert {name for name, module in network.named_modules() if module.training} == {"", "drop", "fc"}
    images = pictures(4)[0]
    network.drop.eval()
    assert torch.equal(network(images), network(images))  # no dropout, no drop path, no statistics of the batch
    frozen.verify(network)
    assert frozen.num_trainable == 4 * 12 + 4
    assert frozen.num_frozen + frozen.num_trainable == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("keep_gradients", [False, True])
def test_momentum_and_decay_from_before_do_not_move_it(network, keep_gradients):
    optimizer = heavy_sgd(network.parameters())
    train(network, optimizer, keep_gradients=keep_gradients)
    frozen = freeze(network, "backbone")
    train(network, optimizer, keep_gradients=keep_gradients)
    frozen.verify(network)


def test_verify_names_what_moved(network):
    frozen = freeze(network, "body")
    with torch.no_grad():
        network.body[3].running_mean[0] += 1e-6
        network.body[0].weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(ArtifactError, match=r"2 of \d+ frozen tensors have changed") as raised:
        frozen.verify(network)
    assert raised.value.details == ("body.0.weight", "body.3.running_mean")
    assert raised.value.code == "E308"


def test_the_digest_does_not_depend_on_the_order_in_memory(network):
    digest = freeze(network, "backbone").digest
    network.body.to(memory_format=torch.channels_last)
    assert freeze(network, "backbone").digest == digest


def test_a_deep_copy_is_frozen_by_itself(network):
    freeze(network, "backbone")
    network.eval()
    twin = copy.deepcopy(network)
    twin.train()
    assert twin.fc.training
    assert not twin.body[1].training
    assert not network.fc.training  # the copy's `train` is not the original's
    unfreeze(twin)
    assert twin.body[1].training
    network.train()
    assert not network.body[1].training


def test_wrappers_and_compile_keep_it(network):
    freeze(network, "backbone")
    for wrapped in (nn.Sequential(network), torch.compile(network, backend="eager")):
        wrapped.train()
        assert network.fc.training
        assert not network.body[1].training


def test_unfreezing_gives_back_what_freezing_took(network):
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    freeze(network, "backbone")
    unfreeze(network, "body")
    network.train()
    assert network.body[1].training
    assert not network.flat[2].training
    assert network.body[0].weight.requires_grad
    assert unfreeze(network).digests == {}
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before
    assert not network.constant.requires_grad
    assert all(module.training for module in network.modules())
    assert "train" not in vars(network.body[1])


def test_only_the_statistics_of_norms(network):
    norms = running_norms(network)
    assert norms == ("body.1", "body.3", "body.5", "body.7", "body.9", "flat.2", "volume.1")
    by_pattern = (*(f"{name}.running_*" for name in norms), *(f"{name}.num_batches_tracked" for name in norms))
    blocks = ordered_blocks(network)
    assert select(network, ["statistics"], blocks) == select(network, by_pattern, blocks) != set()
    freeze(network, "statistics")
    before = tensors(network)
    train(network, heavy_sgd(network.parameters()))
    changed = differing(before, tensors(network))
    assert not [name for name in changed if "running" in name or "num_batches" in name]
    assert "body.1.weight" in changed


def test_norms_alone(network):
    freeze(network, "norms")
    before = tensors(network)
    train(network, heavy_sgd(network.parameters()))
    assert not moved(before, network) & set(running_norms(network))
    assert network.body[10].training


def test_the_average_of_a_frozen_part_is_that_part_to_the_bit(tiny_model):
    model = tiny_model()
    freeze(model, "backbone")
    state, step = make_state(model, ema=0.9), make_step()
    images, labels = pictures(8)
    for _ in range(5):
        model.train()
        step(state, Batch(images, labels))
        state.step += 1
    own, averaged = encode(state.model.state_dict())[1], encode(state.average.module.state_dict())[1]
    assert differing(own, averaged) == ["6.bias", "6.weight"]


def test_words_that_mean_nothing_are_refused(network):
    with pytest.raises(UsageError, match=r"'boddy\.\*' names nothing in the model") as raised:
        freeze(network, "boddy.*")
    assert raised.value.code == "E101"
    with pytest.raises(UsageError, match=r"top\(99\): the model has \d+ blocks before its head"):
        freeze(network, but=["top(99)"])
    with pytest.raises(UsageError, match="freezing head, backbone leaves nothing to train"):
        freeze(network, "head", "backbone")
    assert network.fc.weight.requires_grad
    with pytest.raises(UsageError, match="without saying what"):
        freeze(network)
    with pytest.raises(UsageError, match="has no layer 'fcc'"):
        freeze(network, "backbone", head="fcc")
    with pytest.raises(UsageError, match="nothing comes before the head"):
        freeze(nn.Sequential(nn.Flatten(), nn.Linear(3, 4)), "backbone")


def test_a_teacher_is_frozen_whole(network):
    freeze(network, "all")
    network.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_head_that_was_registered_first_is_named():
    model = nn.ModuleDict({"out": nn.Linear(4, 2), "a": nn.Linear(3, 4), "b": nn.Linear(4, 4)})
    assert [block.name for block in ordered_blocks(model, head="out")] == ["a", "b", "head"]
    assert select(model, ["head"], ordered_blocks(model, head="out")) == {"out", "out.weight", "out.bias"}


FAMILIES = {
    "resnet18": (9, {"fc"}),
    "resnet10t": (7, {"fc"}),
    "vit_tiny_patch16_224": (13, {"head"}),
    "deit_tiny_distilled_patch16_224": (13, {"head", "head_dist"}),
    "convnext_atto": (5, {"head.fc", "head.norm"}),
    "swin_tiny_patch4_window7_224": (5, {"head.fc"}),
    "efficientnet_b0": (18, {"classifier"}),
    "mobilenetv3_small_100": (None, {"classifier"}),
    "densenet121": (None, {"classifier"}),
    "levit_128": (4, {"head.bn", "head.linear", "head_dist.bn", "head_dist.linear"}),
    "inception_v3": (16, {"fc"}),
    "torchvision/resnet18": (9, {"fc"}),
    "torchvision/vit_b_16": (13, {"heads.head"}),
    "torchvision/swin_t": (16, {"head"}),
    "torchvision/mobilenet_v3_small": (14, {"classifier.3"}),
    "torchvision/squeezenet1_0": (9, {"classifier.1"}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_cut_into_blocks_that_hold_all_of_it_once(name):
    num_blocks, heads = FAMILIES[name]
    with torch.device("meta"):
        if name.startswith("torchvision/"):
            model = torchvision.models.get_model(name.partition("/")[2], weights=None)
        else:
            model = timm.create_model(name)
    *body, head = ordered_blocks(model)
    atoms = [atom for block in (*body, head) for atom in block.atoms]
    assert len(atoms) == len(set(atoms))
    assert set(atoms) == set(atoms_of(model))
    assert num_blocks is None or len(body) == num_blocks
    assert len(body) >= 4
    assert all(any(atom.endswith("weight") for atom in block.atoms) for block in body)
    parameters = dict(model.named_parameters())
    assert {atom.rpartition(".")[0] for atom in head.atoms if atom in parameters} == heads


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet", "test_convnext"])
def test_training_the_top_of_a_real_network_leaves_the_rest(name):
    model = timm.create_model(name, num_classes=4, drop_rate=0.1, drop_path_rate=0.1 if "resnet" not in name else 0.0)
    frozen, before = freeze(model, but=["top(1)"]), tensors(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    size = model.default_cfg["input_size"][-1]
    for _ in range(2):
        model.train()
        model(torch.randn(2, 3, size, size)).sum().backward()
        optimizer.step()
    frozen.verify(model)
    changed = set(differing(before, tensors(model)))
    assert changed
    assert not changed & frozen_atoms(model)
    top = {atom for block in ordered_blocks(model)[-2:] for atom in block.atoms}
    assert changed <= top
