"""How a run went: its data, curves, speed, decisions, and where it comes from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiln.language import tr
from kiln.reports.charts import Line, line_chart
from kiln.reports.run_page.material import Material
from kiln.reports.run_page.words import is_share, metric_name, said, seconds_text, shown_value, split_name

MOST_BAD_FILES = 20
MOST_LINES = 4
MOST_POINTS = 400
MOST_LOG = 40


def data_findings(material: Material) -> dict[str, Any]:
    """What the data are, and what was found wrong with them."""
    samples: Mapping[str, int] = material.facts.get("samples", {})
    classes = material.facts.get("classes", [])
    return {
        "where": str(material.values.get("data.path") or tr("objects given from Python")),
        "num_classes": len(classes),
        "splits": [(split_name(name), count) for name, count in samples.items() if count],
        "notes": [said(note) for note in material.resolved.get("notes", ())],
        "bad": [
            {**row, "split": split_name(row.get("split", "")), "detail": said(row.get("detail", ""))}
            for row in material.bad_files[:MOST_BAD_FILES]
        ],
        "num_bad": len(material.bad_files),
        "most_bad": MOST_BAD_FILES,
    }


def curves(material: Material) -> list[dict[str, Any]]:
    """Loss, validation metrics and learning rate, as far as the run recorded them."""
    evaluations = [line for line in material.lines if line.get("event") == "val"]
    steps = _thinned([line for line in material.lines if line.get("event") == "step"])
    epochs = [line for line in material.lines if line.get("event") == "epoch"]
    best = material.result.get("best_step")
    found = [_losses(steps, epochs, evaluations, best), *_metrics(evaluations, best, material), _rates(steps)]
    return [one for one in found if one is not None]


def _thinned(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return lines[:: max(1, -(-len(lines) // MOST_POINTS))]


def _losses(steps: Any, epochs: Any, evaluations: Any, best: Any) -> dict[str, Any] | None:
    train = epochs or steps
    if not train:
        return None
    field = "train_loss" if epochs else "loss"
    lines = [Line([line["step"] for line in train], [line[field] for line in train], colour=1, dots=len(train) < 25)]
    legend = [(1, tr("training, with augmentation"), f"{train[-1][field]:.3f}")]
    held = [line for line in evaluations if "loss" in line["metrics"]]
    if held:
        values = [line["metrics"]["loss"]["value"] for line in held]
        lines.append(Line([line["step"] for line in held], values, colour=2, dots=len(held) < 25))
        legend.append((2, tr("validation"), f"{values[-1]:.3f}"))
    return {"title": tr("Loss by step"), "legend": legend, "chart": line_chart(lines, key="loss", mark=best)}


def _metrics(evaluations: Any, best: Any, material: Material) -> list[dict[str, Any]]:
    if not evaluations:
        return []
    monitor = str(material.values.get("training.monitor", ""))
    there = [name for name in evaluations[-1]["metrics"] if is_share(name)]
    names = sorted(there, key=lambda name: name != monitor)[:MOST_LINES]
    if not names:
        return []
    lines, legend = [], []
    for colour, name in enumerate(names, start=1):
        found = [line["metrics"][name] for line in evaluations if name in line["metrics"]]
        x = [line["step"] for line in evaluations if name in line["metrics"]]
        band: dict[str, Any] = {}
        if colour == 1 and all(metric.get("low") is not None for metric in found):
            band = {"low": [metric["low"] for metric in found], "high": [metric["high"] for metric in found]}
        y = [metric["value"] for metric in found]
        lines.append(Line(x, y, colour=colour, dashed=colour > 1, dots=len(x) < 25, **band))
        legend.append((colour, metric_name(name), shown_value(name, y[-1])))
    chart = line_chart(lines, key="metrics", percent=True, mark=best)
    return [{"title": tr("Validation metrics by step"), "legend": legend, "chart": chart}]


def _rates(steps: Any) -> dict[str, Any] | None:
    if not steps:
        return None
    rates = [line["lr"] for line in steps]
    line = Line([line["step"] for line in steps], rates, colour=3)
    legend = [(3, tr("learning rate, highest"), f"{max(rates):.2g}")]
    return {"title": tr("Learning rate by step"), "legend": legend, "chart": line_chart([line], key="rate")}


def speed(material: Material) -> dict[str, Any]:
    """Where the time went, how fast it was, and how much memory it took, as far as that was recorded."""
    found = material.speed
    total = found.get("seconds_total")
    known = (
        ("seconds_training", tr("training steps")),
        ("seconds_evaluating", tr("evaluating on validation")),
        ("seconds_saving", tr("saving checkpoints")),
    )
    parts = [(name, found[key]) for key, name in known if found.get(key) is not None]
    if total is not None and parts:
        parts.append((tr("the rest, such as starting"), max(total - sum(seconds for _, seconds in parts), 0.0)))
    whole = max(total or 0.0, sum(seconds for _, seconds in parts), 1e-9)
    facts = []
    if total is not None:
        facts.append((tr("the whole training"), seconds_text(total)))
    if found.get("train_images_per_second"):
        facts.append((tr("training images a second"), f"{found['train_images_per_second']:,.0f}"))
    if found.get("seconds_first_step"):
        facts.append((tr("first step, which waits for everything"), seconds_text(found["seconds_first_step"])))
    if found.get("peak_memory_mib"):
        facts.append((tr("memory at most"), f"{found['peak_memory_mib']:,.0f} MiB"))
    return {
        "facts": facts,
        "parts": [(name, seconds_text(seconds), 100 * seconds / whole) for name, seconds in parts],
    }


def decided(material: Material) -> dict[str, Any]:
    """Every setting with its value, and the reason where it was not the user who chose; and the log of the run."""
    reasons: Mapping[str, str] = material.resolved.get("reasons", {})
    rows = [(name, _written(material.values.get(name)), said(reason)) for name, reason in reasons.items()]
    others = [(name, _written(value)) for name, value in material.values.items() if name not in reasons]
    log = list(material.resolved.get("log", ()))
    return {
        "reasons": rows,
        "others": others,
        "log": [json.dumps(entry, default=str, ensure_ascii=False) for entry in log[-MOST_LOG:]],
        "num_log": len(log),
    }


def _written(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def provenance(material: Material) -> dict[str, Any]:
    """What it would take to have this run again."""
    environment = material.environment
    program, *arguments = [str(part) for part in environment.get("command", ())] or [""]
    command = [Path(program).name, *arguments] if program else []
    commit = str(environment.get("commit") or "")
    data = material.facts.get("data", {})
    facts = [
        (tr("run"), material.folder),
        (tr("data fingerprint"), str(data.get("fingerprint", "-"))),
        (tr("model fingerprint"), material.outputs.model if material.outputs is not None else "-"),
        (tr("seed"), str(material.values.get("training.seed", "-"))),
        (tr("steps"), f"{material.result.get('step', 0):,}"),
        (tr("best step"), f"{material.result.get('best_step', 0):,}"),
        *([(tr("git commit"), commit)] if commit else []),
        *[(str(name), str(version)) for name, version in environment.get("versions", {}).items()],
        *[(_machine_name(name), str(value)) for name, value in environment.get("machine", {}).items()],
    ]
    return {"facts": facts, "command": " ".join(shlex.quote(part) for part in command), "recipe": _recipe(material)}


def _machine_name(name: str) -> str:
    return {"platform": tr("platform"), "processor": tr("processor")}.get(name, name)


def _recipe(material: Material) -> str:
    return f"kiln train --recipe {shlex.quote(f'{material.folder}/recipe.yaml')} --name NAME"
