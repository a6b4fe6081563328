"""Whether the probabilities can be believed, and what is gained by answering only the surest images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from kiln.language import tr
from kiln.measure.calibration_harm import calibration_harm
from kiln.metrics.reliability import reliability
from kiln.metrics.selective import Answered
from kiln.observe.outputs import KeptOutputs
from kiln.observe.wording import harm_of_calibration
from kiln.reports.charts import Line, line_chart
from kiln.reports.run_page.subject import Subject
from kiln.reports.run_page.words import percent
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)


def calibration(kept: KeptOutputs, subject: Subject) -> dict[str, Any]:
    """The reliability diagram before and after calibration, with the error against the band of a calibrated model."""
    decision = Decision.from_dict(kept.decision)
    changed = bool(decision.scale or decision.bias)
    sides = []
    for name, raw in ((tr("before"), True), (tr("after"), False)) if changed else ((tr("as it is"), False),):
        sure, right = subject.answers(raw=raw)
        found = reliability(sure, right)["equal_width"]
        low, high = found["band"]
        sides.append(
            {
                "name": name,
                "ece": f"{found['ece']:.3f}",
                "band": tr("{low} to {high}", low=f"{low:.3f}", high=f"{high:.3f}"),
                "inside": found["ece"] <= high,
                "chart": _diagram(found, key=f"reliability-{raw}"),
                "bins": [
                    {
                        "from": percent(found["edges"][b], 0),
                        "to": percent(found["edges"][b + 1], 0),
                        "count": found["count"][b],
                        "said": percent(found["confidence"][b]),
                        "was": percent(found["accuracy"][b]),
                    }
                    for b in range(len(found["count"]))
                    if found["count"][b]
                ],
                "lean": _lean(sure, right, inside=found["ece"] <= high),
            }
        )
    return {
        "changed": changed,
        "how": _how(decision),
        "sides": sides,
        "refusal": _refusal(decision, subject),
        "harm": told_harm(kept),
    }


def told_harm(kept: KeptOutputs) -> str:
    """That the calibration made test worse, where that is shown."""
    part = kept.splits.get("test")
    if part is None:
        return ""
    task, decision = from_dict(kept.task), Decision.from_dict(kept.decision)
    groups = None if part.groups is None else np.array(part.groups)
    harm = calibration_harm(task, part.logits, part.targets, decision, classes=kept.classes, groups=groups)
    return "" if harm is None else harm_of_calibration(**asdict(harm))


def _diagram(found: dict[str, Any], *, key: str) -> str:
    filled = [b for b, count in enumerate(found["count"]) if count]
    columns = {name: [found[name][b] for b in filled] for name in ("confidence", "accuracy", "low", "high")}
    line = Line(columns["confidence"], columns["accuracy"], dots=True, low=columns["low"], high=columns["high"])
    return line_chart([line], key=key, percent=True, diagonal=True, limits=(0.0, 1.02))


def _lean(sure: Any, right: Any, *, inside: bool) -> str:
    if inside:
        return tr("No miscalibration is shown: a perfectly calibrated model would often show as much.")
    if float(np.mean(sure)) > float(np.mean(right)):
        return tr("The model is surer than it should be.")
    return tr("The model is less sure than it could be.")


def _how(decision: Decision) -> str:
    if not (decision.scale or decision.bias):
        return tr("Nothing was fitted: too few validation images, or no gain on images that the fit had not seen.")
    n = f"{decision.fitted.get('n', 0):,}"
    if len(decision.scale) == 1 and not decision.bias:
        return tr("A temperature of {t} was fitted on {n} validation images; it changes no answer.",
                  t=f"{1 / decision.scale[0]:.3g}", n=n)  # fmt: skip
    return tr("A factor and a bias for each class were fitted on {n} validation images.", n=n)


def _refusal(decision: Decision, subject: Subject) -> str:
    if decision.least_probability is None and decision.most_unfamiliar is None:
        return ""
    parts = []
    if decision.least_probability is not None:
        answered = subject.sure >= decision.least_probability
        parts.append(
            tr("Below a probability of {p} the answer is withheld; of these images {share} reach it.",
               p=percent(decision.least_probability), share=percent(float(answered.mean())))
        )  # fmt: skip
        if answered.any():
            right = percent(float(subject.right[answered].mean()))
            parts.append(tr("Of those, {right} are answered rightly.", right=right))
    if decision.most_unfamiliar is not None:
        parts.append(
            tr("Images less familiar than {share} of the validation images are not answered.",
               share=percent(decision.most_unfamiliar))
        )  # fmt: skip
    return " ".join(parts)


def coverage(subject: Subject) -> dict[str, Any]:
    """How many answers are wrong when only the surest are given."""
    answered = Answered(subject.sure, subject.right)
    curve = answered.curve()
    order = np.argsort(-subject.sure, kind="stable")
    rows = []
    for share in COVERAGES:
        count = max(1, round(share * len(subject)))
        part = order[:count]
        rows.append(
            {
                "coverage": percent(share, 0),
                "count": count,
                "wrong": int((~subject.right[part]).sum()),
                "risk": percent(float((~subject.right[part]).mean())),
                "threshold": percent(float(subject.sure[part].min())),
            }
        )
    chart = line_chart(
        [Line(curve["coverage"], curve["risk"], dots=len(curve["risk"]) < 3)],
        key="coverage",
        percent=True,
        limits=(0.0, max(0.05, 1.08 * max(curve["risk"]))),
    )
    return {"chart": chart, "rows": rows}
