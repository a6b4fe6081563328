"""A hand-written loop with Kiln's parts: no command, no recipe, no run folder.

    python examples/plain_loop.py photos/          # class folders, a table, or an archive of either; digits without one

Every part works alone in plain PyTorch. What you give up by writing the loop yourself: exact resume, checkpoints, the
guard against non-finite steps, several processes. `kiln train` and `kiln.engine.fit` have those.
"""

import sys

import torch

from kiln import create_model, open_source
from kiln.data.images import ContractImages, RandomCropImages
from kiln.data.loader import Assembler, BadFiles, TrainLoader, evaluation_batches
from kiln.data.sampler import Cut, Shuffle
from kiln.data.split import split_source
from kiln.losses import CrossEntropy
from kiln.models.normalize import Normalized
from kiln.optim.groups import parameter_groups
from kiln.optim.schedules import cosine, set_rates, with_warmup
from kiln.pixels import PixelContract
from kiln.random import keys_of
from kiln.tasks.classification import Classification


def main(data: str, *, epochs: int = 5, batch_size: int = 16, px: int = 32, lr: float = 3e-3, seed: int = 0) -> float:
    # Samples, classes by name, and a validation split by the hash of names: new files move no old ones.
    source, task = open_source(data), Classification()
    classes = task.class_names(source.labels, source.class_names)
    targets = task.encode(source.labels, classes, given=source.class_names)
    split = split_source(source, task.strata(source.labels), val_fraction=0.2, seed=seed)

    # The network, which takes uint8 images, and the contract that says how a file becomes one.
    made = create_model("kiln/small_cnn", num_classes=len(classes), img_size=px, seed=seed)
    model = Normalized(made.model, made.spec.mean, made.spec.std)
    contract = PixelContract(height=px, width=px)

    # Batches: the order and the crops follow from (seed, epoch, name), so any batch can be made again.
    keys, bad_files = keys_of(source.keys), BadFiles(source.keys)
    images = Assembler(RandomCropImages(source, contract, scale=(0.5, 1.0)), targets)
    shuffle = Shuffle(split.train, keys[split.train], seed=seed)
    loader = TrainLoader(images, shuffle, Cut(len(split.train), batch_size), keys=keys, bad_files=bad_files, workers=2)

    # No decay on biases and norms; a warmup that is part of the schedule; a loss with a value per sample.
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=lr, weight_decay=0.05), lr=lr)
    total_steps = epochs * len(loader)
    schedule = with_warmup(cosine, total_steps, warmup_steps=total_steps // 10)
    loss_of = CrossEntropy(smoothing=0.1)

    model.train()
    for step, batch in zip(range(total_steps), loader.from_step(0), strict=False):
        set_rates(optimizer, schedule(step))
        loss = loss_of(model(batch.images), batch.targets).values.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    # Validation: the contract's own pixels, each sample once, metrics with their 95 % intervals.
    model.eval()
    held_out = Assembler(ContractImages(source, contract), targets)
    batches = evaluation_batches(held_out, split.val, batch_size=64, bad_files=bad_files, split="val", skip_bad=False)
    with torch.inference_mode():
        outputs = [(model(batch.images), batch.targets) for batch in batches]
    logits, truth = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
    found = task.metrics(logits, truth, classes)
    for name, metric in found.items():
        print(f"{name:<18} {metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})")
    return found["accuracy"].value


if __name__ == "__main__":
    from _digits import digits_folder

    main(sys.argv[1] if sys.argv[1:] else digits_folder())
