"""Models by name: heads, channels, sizes, auxiliary outputs, seeds, and what is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kiln.errors import SecurityError, UsageError
from kiln.models.catalogue import torchvision_names
from kiln.models.create import create_model, main_and_auxiliary
from kiln.models.device import device_note, resolve_device
from kiln.models.normalize import Normalized
from kiln.models.sizes import smallest_size
from kiln.models.spec import ModelSpec, for_channels
from kiln.models.surgery import head_names

# The light ones of each family of heads; the slow test below takes them all.
TORCHVISION = ("densenet121", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t")


def logits(created, count=2):
    spec = created.spec
    with torch.no_grad():
        return main_and_auxiliary(created.model.eval()(torch.rand(count, spec.channels, spec.img_size, spec.img_size)))[
            0
        ]


def head_widths(created):
    layers = [created.model.get_submodule(head) for head in head_names(created.model)]
    return [layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_get_a_head_and_channels(name):
    created = create_model(f"torchvision/{name}", num_classes=7, channels=1)
    assert head_widths(created) == [7]
    assert created.spec.channels == len(created.spec.mean) == 1
    assert created.spec.name == f"torchvision/{name}"


@pytest.mark.slow
def test_every_classification_model_of_torchvision_gets_a_head_and_channels():
    visited = 0
    for name in torchvision_names():
        if name.startswith("regnet"):
            if name not in ("regnet_x_800mf", "regnet_y_400mf"):
                continue  # their initialisation needs values, gigabytes of them, and they differ in depth only
            created = create_model(f"torchvision/{name}", num_classes=7, channels=1)
        else:
            with torch.device("meta"):
                created = create_model(f"torchvision/{name}", num_classes=7, channels=1)
        assert head_widths(created) == [7] * {"googlenet": 3, "inception_v3": 2}.get(name, 1), name
        visited += 1
    assert visited >= 67


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("kiln/small_cnn", 8, 1),
        ("resnet18", 64, 3),
        ("timm/resnet18.a1_in1k", 64, 1),
        ("vit_tiny_patch16_224", 64, 4),
        ("swin_tiny_patch4_window7_224", 64, 3),
        ("mobilenetv3_small_050", 64, 5),
        ("convnext_atto", 64, 3),
    ],
)
def test_logits_have_the_width_asked_for(name, size, channels):
    created = create_model(name, num_classes=5, channels=channels, img_size=size)
    assert logits(created).shape == (2, 5)
    assert (created.spec.num_classes, created.spec.img_size, created.spec.channels) == (5, size, channels)
    assert ModelSpec.from_dict(created.spec.to_dict()) == created.spec


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = create_model("resnet18", num_classes=3, seed=1).model.state_dict()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again = create_model("resnet18", num_classes=3, seed=1).model.state_dict()
    other = create_model("resnet18", num_classes=3, seed=2).model.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("name", "kwargs", "weights"),
    [
        ("torchvision/inception_v3", {}, [0.4]),
        ("torchvision/googlenet", {}, [0.3, 0.3]),
        ("inception_v3", {"aux_logits": True}, [0.4]),
        ("torchvision/inception_v3", {"aux_logits": False}, []),
    ],
)
def test_auxiliary_outputs_train_and_evaluate(name, kwargs, weights):
    created = create_model(name, num_classes=4, kwargs=kwargs)
    size = created.spec.img_size
    images = torch.rand(2, 3, size, size)
    main, auxiliary = main_and_auxiliary(created.model.train()(images))
    assert main.shape == (2, 4)
    assert [weight for weight, _ in auxiliary] == weights
    assert all(output.shape == (2, 4) for _, output in auxiliary)
    created.model.eval()
    raw = (images * 255).to(torch.uint8)
    with torch.no_grad():
        assert Normalized(created.model, created.spec.mean, created.spec.std)(raw).shape == (2, 4)


def test_main_and_auxiliary_refuses_what_is_not_logits():
    assert main_and_auxiliary({"logits": torch.ones(1, 2)})[0].shape == (1, 2)
    with pytest.raises(UsageError, match=r"the model returned str[\s\S]*expected: logits"):
        main_and_auxiliary("logits")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "torchvision/squeezenet1_1",
            16,
            r"img_size = 16 .* does not fit torchvision/squeezenet1_1[\s\S]*at least 17 px",
        ),
        ("inception_v3", 74, r"img_size = 74 .*timm/inception_v3[\s\S]*at least 75 px"),
        ("torchvision/inception_v3", 128, r"img_size = 128[\s\S]*at least 299 px[\s\S]*aux_logits=false"),
        ("vit_tiny_patch16_224", 100, r"img_size = 100[\s\S]*patch of 16 px, such as 96 or 112"),
        ("vit_tiny_patch16_224", 8, r"img_size = 8[\s\S]*such as 16"),
        ("torchvision/vit_b_32", 100, r"cannot be made[\s\S]*divisible by patch"),
        ("coatnet_nano_rw_224", 100, r"img_size = 100[\s\S]*does not fit timm/coatnet_nano_rw_224"),
        ("kiln/small_cnn", 3, r"img_size = 3[\s\S]*at least 4 px"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_would(name, size, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model(name, num_classes=3, img_size=size)
    assert caught.value.code == "E102"


def test_smallest_size_searches():
    assert smallest_size(lambda size: size >= 37) == 37
    assert smallest_size(lambda size: size >= 1) == 1
    assert smallest_size(lambda size: False) is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"name": "resnet81"}, "E108", r"unknown model 'resnet81'[\s\S]*did you mean: resnet18"),
        ({"name": "vit_b_16"}, "E108", r"unknown model[\s\S]*next: torchvision/vit_b_16"),
        ({"name": "torchvision/resnet19"}, "E108", r"did you mean: torchvision/resnet18"),
        ({"name": "resnet18.imagenet"}, "E108", r"unknown weights[\s\S]*resnet18.a1_in1k"),
        ({"name": "resnet18", "channels": 0}, "E102", r"channels = 0"),
        ({"name": "resnet18", "num_classes": True}, "E102", r"num_classes = True"),
        ({"name": "resnet18", "weights": "best.pth"}, "E102", r"weights = 'best.pth': no such file"),
        ({"name": "resnet18", "kwargs": {"num_classes": 4}}, "E103", r"num_classes, which has a setting of its own"),
        ({"name": "resnet18", "kwargs": {"depht": 4}}, "E103", r"does not take one of[\s\S]*depht"),
        ({"name": "kiln/small_cnn", "kwargs": {"width": [4]}}, "E101", r"does not take 'width'[\s\S]*widths"),
        ({"name": "kiln/small_cnn", "drop_path": 0.1}, "E103", r"no residual paths"),
        ({"name": "torchvision/resnet18", "drop": 0.1}, "E103", r"drop = 0.1 has no effect"),
    ],
)
def test_wrong_requests_are_explained(arguments, code, message):
    with pytest.raises(UsageError, match=message) as caught:
        create_model(**{"num_classes": 3, **arguments})
    assert caught.value.code == code


def test_dropout_and_stochastic_depth_reach_the_layers():
    timm_model = create_model("convnext_atto", num_classes=3, img_size=64, drop=0.3, drop_path=0.2).model
    assert [m.p for m in timm_model.modules() if isinstance(m, nn.Dropout)][-1] == 0.3
    theirs = create_model("torchvision/convnext_tiny", num_classes=3, drop_path=0.2).model
    depths = [m.p for m in theirs.modules() if type(m).__name__ == "StochasticDepth"]
    assert depths[0] == 0
    assert depths[-1] == 0.2
    assert create_model("kiln/small_cnn", num_classes=3, drop=0.25).model.drop.p == 0.25


OWN = """
import torch
from torch import nn

def fixed():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def takes_all(num_classes, in_chans, width=4, drop_rate=0.0):
    return nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate),
                         nn.Linear(width, num_classes))

class Dense(nn.Module):
    def __init__(self): super().__init__(); self.c = nn.Conv2d(3, 5, 1)
    def forward(self, x): return self.c(x)

class Fixed(nn.Module):
    def forward(self, x): return x.mean((2, 3))

def nothing(): return 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return str(path)


def test_the_users_function_gets_what_it_takes(own):
    created = create_model(f"{own}:takes_all", num_classes=6, channels=2, img_size=16, drop=0.5, kwargs={"width": 7})
    assert logits(created).shape == (2, 6)
    assert created.model[3].p == 0.5
    assert created.spec.kwargs == {"width": 7}
    assert created.notes == ()


def test_the_users_fixed_network_is_adapted_and_says_so(own):
    created = create_model(f"{own}:fixed", num_classes=6, channels=1, img_size=16)
    assert logits(created).shape == (2, 6)
    assert created.notes == (
        "first convolution '0' adapted from 3 to 1 channels",
        "last layer '4' replaced: 10 -> 6 outputs",
    )


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("Dense", {}, r"returns \('B', 5, 16, 16\)[\s\S]*logits \(B, num_classes\)"),
        ("Fixed", {}, r"gives 3 outputs and has no linear layer"),
        ("nothing", {}, r"returned int[\s\S]*torch.nn.Module"),
        ("OWN", {}, r"has no 'OWN'"),
        ("fixed", {"drop": 0.1}, r"drop = 0.1 has no effect"),
        ("takes_all", {"kwargs": {"widht": 3}}, r"no parameter 'widht'[\s\S]*did you mean: width"),
    ],
)
def test_the_users_code_is_checked(own, function, arguments, message):
    with pytest.raises(UsageError, match=message):
        create_model(f"{own}:{function}", num_classes=6, img_size=16, **arguments)


def test_code_named_by_a_file_needs_trust(own):
    name = f"{own}:fixed"
    with pytest.raises(SecurityError, match=rf"--trust {name}"):
        create_model(name, num_classes=10, img_size=16, trusted=())
    assert create_model(name, num_classes=10, img_size=16, trusted=[name]).spec.name == name


def test_normalisation_is_the_textbook_one():
    raw = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (raw.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    flat = Normalized(nn.Flatten(), mean, std)(raw)
    torch.testing.assert_close(flat, expected.flatten(1).float(), atol=1e-6, rtol=0)
    assert for_channels((0.1, 0.2, 0.6), 1) == (0.3,)


def test_small_cnn_learns_digits_quickly():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    targets = torch.from_numpy(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    created = create_model("kiln/small_cnn", num_classes=10, channels=1, img_size=8)
    assert 100_000 < sum(parameter.numel() for parameter in created.model.parameters()) < 300_000
    model, batch, epochs = created.model.train(), 50, 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(train) // batch)
    for epoch in range(epochs):
        shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch + 1))]
        for part in shuffled.split(batch):
            nn.functional.cross_entropy(model(images[part]), targets[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        correct = (model.eval()(images[test]).argmax(1) == targets[test]).float().mean()
    assert correct >= 0.98


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(UsageError, match=r"device = 'gpu'[\s\S]*choices: auto, cpu, cuda"):
        resolve_device("gpu")
    missing = "xpu" if torch.cuda.is_available() else "cuda:7"
    with pytest.raises(UsageError, match=rf"{missing}' is not on this machine[\s\S]*choices: auto, cpu") as caught:
        resolve_device(missing)
    assert caught.value.code == "E109"
    assert "untested" in device_note(torch.device("mps"))
    assert device_note(torch.device("cuda", 0)) == ""


def test_a_small_model_imports_neither_timm_nor_torchvision():
    code = "import sys; from kiln.models.create import create_model; create_model('kiln/small_cnn', num_classes=2)"
    check = "; sys.exit(any(name in sys.modules for name in ('timm', 'torchvision')))"
    subprocess.run([sys.executable, "-c", code + check], check=True)
