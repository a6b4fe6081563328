"""The flags of `kiln train`: the list as agreed, each naming a field that exists; peers' spellings likewise."""

import pytest

from kiln.cli.flags import FLAGS, OWN, canonical
from kiln.cli.recipe_arguments import assignments
from kiln.errors import UsageError
from kiln.recipe import FIELDS, Recipe
from kiln.recipe.aliases import ALWAYS_ON, KNOWN, MAPPED, NOT_YET, REPLACED, translate
from kiln.recipe.recipe import parse_changes

AGREED = """
--model --weights --img-size --drop --drop-path --trust --task --root --decisions --channels --resize --val-fraction
--test-fraction --folds --bad-files -j --workers --cache --cache-size
--sampler --aug --mixup --cutmix --loss --smoothing --opt --lr --weight-decay --wd --momentum --clip-grad --sched --warmup
--epochs -b --batch-size --micro-batch-size --precision --model-ema-decay --monitor --patience --seed
--determinism --checkpoint-every --output --name --device --strategy --processes
--preset --recipe --set --resume --extend --dry-run -q --quiet --json -h --help
"""

# What users of timm, torchvision and Ultralytics type: it is mapped, or refused by name, never passed over
PEERS = """
--pretrained --num-classes --epochs --batch-size --lr --opt --momentum --weight-decay --wd --sched --warmup-epochs
--min-lr --img-size --mixup --cutmix --smoothing --reprob --drop --drop-path --clip-grad --amp --channels-last
--grad-accum-steps --model-ema --layer-decay --sync-bn --workers --seed --resume --output --device --data-dir
--data-path --opt-eps --label-smoothing --lr-scheduler --lr-warmup-epochs --clip-grad-norm --auto-augment
--random-erase --mixup-alpha --cutmix-alpha --use-deterministic-algorithms --output-dir --scale --ratio --hflip
--aa --bce-loss --freeze-layers --checkpoint-hist
"""
PEER_KEYS = """
data epochs imgsz batch lr0 lrf optimizer patience device project name pretrained cos_lr warmup_epochs weight_decay
label_smoothing dropout resume seed workers val amp momentum deterministic save_period fliplr flipud erasing
auto_augment hsv_h freeze time fraction cache
"""


def names():
    return [name for flag in FLAGS for name in flag.names] + list(OWN)


def test_the_flags_are_those_agreed():
    assert names() == AGREED.split()
    assert len(set(names())) == len(names()) == 60


def test_every_flag_names_a_field_and_speaks_its_help():
    visited = 0
    for flag in FLAGS:
        assert flag.field in FIELDS, flag
        assert flag.help.startswith(FIELDS[flag.field].help), flag
        assert flag.metavar, flag
        visited += 1
    assert visited == 46
    assert len({flag.field for flag in FLAGS}) == visited


def values_of(arguments):
    """What the parser would hand over for canonical arguments."""
    values = {flag.parameter: None for flag in FLAGS} | {"set_": []}
    parameter_of = {flag.names[-1]: flag.parameter for flag in FLAGS}
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name == "--set":
            values["set_"].append(value or next(rest))
        elif FIELDS[parameter_of[name].replace("__", ".")].is_list:
            values[parameter_of[name]] = [*(values[parameter_of[name]] or []), value]
        else:
            values[parameter_of[name]] = value
    return values


def recipe_of(*arguments):
    return Recipe().override(parse_changes(assignments(values_of(canonical(arguments).arguments))))


def test_every_field_is_reached_by_set():
    visited = 0
    for name in FIELDS:
        text = str(Recipe().to_dict()[name.split(".")[0]][name.split(".")[1]])
        text = "null" if text == "None" else text
        assert recipe_of("--set", f"{name}={text}")[name] == Recipe()[name], name
        with pytest.raises(UsageError):
            recipe_of("--set", f"{name}x={text}")
        visited += 1
    assert visited == len(FIELDS) >= 60


def test_every_peer_spelling_leads_to_a_field():
    visited = 0
    for name, alias in MAPPED.items():
        assert alias.field in FIELDS, name
        visited += 1
    assert visited >= 45
    tables = [set(MAPPED), set(ALWAYS_ON), set(REPLACED), set(NOT_YET)]
    assert sum(map(len, tables)) == len(KNOWN), "a spelling stands in two tables"
    own = {name.lstrip("-") for name in names()}
    assert not own & KNOWN, "a peer's spelling hides a flag of our own"


def test_what_users_type_is_known():
    known = [flag for flag in PEERS.split() if flag in names() or flag.lstrip("-") in KNOWN]
    keys = [
        key for key in PEER_KEYS.split() if f"--{key.replace('_', '-')}" in names() or key.replace("_", "-") in KNOWN
    ]
    assert known == PEERS.split()
    assert keys == PEER_KEYS.split()
    assert len(known) + len(keys) > 80


def test_what_is_not_available_is_refused_unless_off():
    refused = 0
    for name in [*NOT_YET, *REPLACED]:
        with pytest.raises(UsageError) as caught:
            translate(f"--{name}", ["0.5"])
        assert caught.value.code == "E101"
        assert caught.value.hint
        refused += 1
    assert refused >= 60
    assert translate("mosaic", ["0.0"]).field is None
    assert "off here anyway" in translate("--mosaic", ["0"]).note


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--epochs", "5"], "training.epochs", "5ep"),
        (["--epochs=200steps"], "training.epochs", "200steps"),
        (["epochs=5"], "training.epochs", "5ep"),
        (["training.epochs=5"], "training.epochs", "5ep"),
        (["-b", "32"], "training.batch_size", 32),
        (["-b32"], "training.batch_size", 32),
        (["-j0"], "data.workers", 0),
        (["batch=-1"], "training.batch_size", "auto"),
        (["imgsz=224"], "model.img_size", 224),
        (["--wd", "0.01"], "optim.weight_decay", 0.01),
        (["weight_decay=0.01"], "optim.weight_decay", 0.01),
        (["optimizer=SGD"], "optim.name", "sgd"),
        (["--opt", "AdamW"], "optim.name", "adamw"),
        (["--set", "optim.name=SGD"], "optim.name", "sgd"),
        (["lr0=1e-3"], "optim.lr", 1e-3),
        (["--pretrained"], "model.weights", "pretrained"),
        (["pretrained=True"], "model.weights", "pretrained"),
        (["pretrained=False"], "model.weights", "none"),
        (["pretrained=weights.pth"], "model.weights", "weights.pth"),
        (["--amp"], "training.precision", "bf16"),
        (["amp=False"], "training.precision", "fp32"),
        (["--channels-last"], "run.memory_format", "channels_last"),
        (["--warmup-epochs", "3"], "schedule.warmup", "3ep"),
        (["--lr-scheduler", "steplr"], "schedule.name", "step"),
        (["--sched", "poly"], "schedule.name", "polynomial"),
        (["--lr-warmup-method", "constant"], "schedule.warmup_shape", "constant"),
        (["--label-smoothing", "0.2"], "loss.smoothing", 0.2),
        (["--label_smoothing", "0.2"], "loss.smoothing", 0.2),
        (["--scale", "0.5", "0.9"], "augment.crop_scale", (0.5, 0.9)),
        (["--model-ema"], "training.ema_decay", 0.9998),
        (["device=0"], "run.device", "cuda"),
        (["deterministic=True"], "run.determinism", "strict"),
        (["save_period=2"], "checkpoint.every", ["2ep"]),
        (["recovery_interval=50"], "checkpoint.every", ["50steps"]),
        (["--checkpoint-every", "5steps,10m"], "checkpoint.every", ["5steps", "10m"]),
        (["--trust", "a:b", "--trust", "c:d"], "model.trust", ("a:b", "c:d")),
        (["--name", "a=b"], "run.name", "a=b"),
        (["--lr", "1e-3", "--set", "optim.lr=2e-3", "lr0=3e-3"], "optim.lr", 3e-3),
        (["lr0=3e-3", "--set", "optim.lr=2e-3", "--lr", "1e-3"], "optim.lr", 1e-3),
        (["--set", "model.kwargs.width=2"], "model.kwargs", {"width": 2}),
        (["data=photos"], "data.path", "photos"),
    ],
)
def test_spellings_and_what_they_set(arguments, field, value):
    assert recipe_of(*arguments)[field] == Recipe().override({field: value})[field]
    assert recipe_of(*arguments)[field] != Recipe()[field] or value in ("auto", "adamw", "none")


def test_a_mapped_spelling_leaves_a_note_and_our_own_none():
    assert canonical(["lr0=0.1", "--epochs", "3"]).notes == ["lr0 is optim.lr here"]
    assert canonical(["val=True"]).notes[0].startswith("val: a run validates")
    assert canonical(["epochs=3", "--workers", "0"]).notes == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "5"], "unknown flag --epoch: did you mean --epochs"),
        (["--batchsize", "5"], "did you mean --batch-size"),
        (["epoch=5"], "unknown flag epoch: did you mean epochs"),
        (["img_sz=5"], "did you mean imgsz"),
        (["-x"], "unknown flag -x"),
        (["--epochs"], "--epochs needs a value"),
        (["--degrees", "10"], "--degrees is not available yet"),
        (["--sync-bn"], "--sync-bn is not available yet"),
        (["mosaic=1.0"], "mosaic is not available yet"),
        (["--num-classes", "10"], "not a setting of Kiln\n  next: leave it out: the classes come from the data"),
        (["--grad-accum-steps", "4"], "--batch-size, and --micro-batch-size"),
        (["val=False"], "val cannot be False: a run validates"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        canonical(arguments)
    assert caught.value.exit_code == 2


def test_positionals_and_what_follows_two_dashes_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert canonical(["photos", "--quiet"]).arguments == ["photos", "--quiet"]
    assert canonical(["a=b"]).arguments == ["a=b"], "a folder that is there is no setting"
    assert canonical(["--", "--odd"]).arguments == ["--", "--odd"]
