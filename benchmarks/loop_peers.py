"""The training loops of Kiln's peers, each driven by its ordinary training call.

Each is as bare as its settings allow, which is generous to it: nothing is logged, saved, shown or validated, and no
gradient is clipped. What a peer does all the same (Ultralytics clips and keeps an average of the weights) is its own
loop and counts.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from loop_arms import Arm, InMemory, OnStep, Work
from torch import Tensor, nn
from torch.nn import functional as F


def fastai(work: Work, num_steps: int, on_step: OnStep) -> None:
    """`Learner.fit`; its optimizer wrapper around the torch optimizer."""
    from fastai.callback.core import Callback, TrainEvalCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    class Clock(Callback):
        def after_batch(self) -> None:
            on_step(self.learn.loss.detach())

    class Loader(InMemory):
        device = torch.device("cpu")

    model = work.model()
    optimizer = work.optimizer(model)
    learner = Learner(
        DataLoaders(Loader(work, num_steps), Loader(work, 1), device=torch.device("cpu")),
        model,
        loss_func=F.cross_entropy,
        opt_func=lambda *_, **__: OptimWrapper(opt=optimizer),
        cbs=[TrainEvalCallback(), Clock()],
        default_cbs=False,  # without its recorder
    )
    learner._do_epoch_validate = lambda *_, **__: None
    learner.fit(1)


def lightning(work: Work, num_steps: int, on_step: OnStep) -> None:
    """`Trainer.fit` with automatic optimization."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return work.optimizer(self.model)

    class Clock(Callback):
        def on_train_batch_end(self, _trainer: Any, _module: Any, outputs: Any, *_: Any) -> None:
            on_step(outputs["loss"].detach())

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(Module(), work.batches(num_steps))


def huggingface(work: Work, num_steps: int, on_step: OnStep) -> None:
    """`transformers.Trainer.train`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()
            self.loss = torch.zeros(())

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            loss = F.cross_entropy(self.model(images), labels)
            self.loss = loss.detach()
            return {"loss": loss}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step(model.loss)

    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=num_steps,
            per_device_train_batch_size=1,  # one item of the data set is a whole batch
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=work.batches(num_steps),
            data_collator=lambda items: {"images": items[0][0], "labels": items[0][1]},
            optimizers=(work.optimizer(model.model), None),
            callbacks=[Clock()],
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
                trainer.remove_callback(callback)
        trainer.train()


def composer(work: Work, num_steps: int, on_step: OnStep) -> None:
    """`composer.Trainer.fit`."""
    from composer import Callback, ComposerModel, Trainer

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()

        def forward(self, batch: Any) -> Tensor:
            return self.model(batch[0])

        def loss(self, outputs: Tensor, batch: Any, *_: Any, **__: Any) -> Tensor:
            return F.cross_entropy(outputs, batch[1])

    class Clock(Callback):
        def batch_end(self, state: Any, _: Any) -> None:
            on_step(state.loss.detach())

    model = Model()
    trainer = Trainer(
        model=model,
        train_dataloader=work.batches(num_steps),
        optimizers=work.optimizer(model.model),
        max_duration="1ep",
        device_train_microbatch_size=work.batch_size,
        device="cpu",
        precision="fp32",
        progress_bar=False,
        log_to_console=False,
        loggers=None,
        callbacks=[Clock()],
    )
    trainer.fit()
    trainer.close()


def ultralytics(work: Work, num_steps: int, on_step: OnStep) -> None:
    """`BaseTrainer.train`, its ordinary loop under a model, an optimizer and batches of ours."""
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils import LOGGER

    LOGGER.setLevel(logging.ERROR)

    class Model(nn.Module):
        criterion = None

        def __init__(self) -> None:
            super().__init__()
            self.model = work.model()

        def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            loss = F.cross_entropy(self.model(batch["img"]), batch["cls"])
            return loss, {"loss": loss.detach()}

    class Loader(InMemory):
        sampler = dataset = range(work.batch_size * num_steps)
        batch_size, num_workers, drop_last = work.batch_size, 0, False

        def __iter__(self) -> Any:
            return ({"img": images, "cls": targets} for images, targets in super().__iter__())

        def reset(self) -> None: ...

    class Trainer(BaseTrainer):
        def get_dataset(self) -> dict[str, Any]:
            return {"train": None, "val": None, "nc": 10, "names": {}, "channels": 3}

        def setup_model(self) -> None:
            self.model = Model()

        def get_dataloader(self, *_: Any, **__: Any) -> Loader:
            return Loader(work, num_steps)

        def build_optimizer(self, model: Any, **_: Any) -> torch.optim.Optimizer:
            return work.optimizer(model.model)

        def get_validator(self) -> Any:
            return SimpleNamespace(metrics=SimpleNamespace(keys=[]), dataloader=None)

        def preprocess_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return batch

        def validate(self) -> tuple[dict[str, float], float]:
            return {}, 0.0

        def set_model_attributes(self) -> None: ...
        def progress_string(self) -> str:
            return ""

        def label_loss_items(self, *losses: Any, **_: Any) -> dict[str, float] | list[str]:
            return {} if losses else []

        def save_metrics(self, metrics: Any) -> None: ...
        def save_model(self) -> bool:
            return False

        def final_eval(self) -> None: ...

    with tempfile.TemporaryDirectory() as folder:
        settings = {"project": folder, "device": "cpu", "epochs": 1, "batch": work.batch_size, "nbs": work.batch_size}
        bare = {
            "amp": False,
            "val": False,
            "save": False,
            "plots": False,
            "verbose": False,
            "warmup_epochs": 0,
            "lrf": 1.0,
        }
        trainer = Trainer(overrides={**settings, **bare, "imgsz": 32, "model": "none.yaml", "data": "none"})
        trainer.callbacks = {"on_train_batch_end": [lambda trainer: on_step(trainer.loss.detach())]}
        trainer.train()


PEERS: dict[str, tuple[str, Arm]] = {
    "fastai": ("fastai.learner", fastai),
    "lightning": ("lightning.pytorch", lightning),
    "hf trainer": ("transformers", huggingface),
    "ultralytics": ("ultralytics.engine.trainer", ultralytics),
    "composer": ("composer", composer),
}
"""Name in the table -> module to import, arm."""


def importable() -> tuple[dict[str, Arm], dict[str, str]]:
    """The peers that are here, and of the others why they are not. All are imported before anything is measured."""
    arms: dict[str, Arm] = {}
    missing: dict[str, str] = {}
    os.environ.setdefault("YOLO_VERBOSE", "false")
    for name, (module, arm) in PEERS.items():
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(None):
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # whatever is wrong with a peer, the others still count
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            arms[name] = arm
    for logger in ("lightning.pytorch", "lightning.fabric", "composer", "transformers", "accelerate"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return arms, missing
