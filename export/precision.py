"""Which precision each transformer is exported in: what was asked for, what was measured, what was chosen, and why.

In: names of precisions, and measurements (`export.quality`). Out: one precision per stage with its reason, or an ExportError that says what
was measured, what the least is, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..kernels.quantized_product import PRECISIONS
from .errors import ExportError
from .mixed_precision import TYPES
from .transformers import STAGES

NAMES = (*PRECISIONS, "auto")
TARGETS = {"onnxruntime": NAMES, "tensorrt": ("fp32", *TYPES)}
_NARROW = ("int4", "int8")  # the narrowest first

# With the same noise two distributions draw different tokens in at most sqrt(kl / 2) of all cases (Pinsker): in one of ten.
MOST_KL = 0.02
# That bound is of no use where a model is nearly sure, so its first choice must mostly stay. In flat distributions it changes between
# entries that are as likely as each other: the demo's fine stage keeps 90 % at 4 bits, with a divergence of 0.002.
LEAST_TOP1 = 0.85
# Share of the uniform distribution's entropy. A model that was never trained may hardly differ from it, and what it loses means nothing; a
# trained one stays far below (the demo's stages are at 0.14, 0.37 and 0.71).
UNTRAINED = 0.95


@dataclass(frozen=True)
class Chosen:
    precision: str
    reason: str
    measured: dict[str, float]  # of `export.quality.measure`; of fp32 what is so by definition

    def __str__(self) -> str:
        lost = "" if self.precision == "fp32" else f", top-1 {self.measured['top1']:.1%}, KL {self.measured['kl']:.4f}"
        return f"{self.precision}{lost}: {self.reason}"

    def record(self) -> dict[str, object]:
        return {"precision": self.precision, **self.measured, "reason": self.reason}


def wanted(precision: str | Mapping[str, str], target: str = "onnxruntime") -> dict[str, str]:
    """stage -> precision, of one name for all stages or {stage: name}; a stage that is not named, or "" for all, is fp32."""
    if not isinstance(target, str) or target not in TARGETS:
        raise ExportError(f"target {target!r}: expected one of {', '.join(TARGETS)}.")
    if not isinstance(precision, str | Mapping):
        raise ExportError(f"precision must be one for all stages, or a dict of stages and theirs, got {precision!r}.")
    named, names = {"": precision} if isinstance(precision, str) else dict(precision), TARGETS[target]
    for stage, name in named.items():
        if stage not in ("", *STAGES):
            raise ExportError(f"precision of {stage!r}: the stages that have one are {', '.join(STAGES)}.")
        if stage and target == "tensorrt":
            raise ExportError(f"precision of {stage!r}: with the target tensorrt there is one for all stages.")
        if name not in names:
            other = next((f"; {name} is for the target {one}" for one, known in TARGETS.items() if name in known), "")
            raise ExportError(f"precision {name!r}{f' of {stage}' if stage else ''}: expected one of {', '.join(names)}{other}.")
    return {stage: named.get(stage, named.get("", "fp32")) for stage in STAGES}


def narrower(name: str) -> tuple[str, ...]:
    """The forms of fewer bits that must be measured for what was asked."""
    return _NARROW if name == "auto" else () if name == "fp32" else (name,)


def choose(asked: Mapping[str, str], measured: Mapping[str, Mapping[str, Mapping[str, float]]], force: bool) -> dict[str, Chosen]:
    """stage -> what it is exported in. ExportError with all stages that were asked for a precision that loses too much, unless forced."""
    chosen, faults = {}, []
    for stage in STAGES:
        name, found = asked[stage], measured.get(stage, {})
        below = {narrow: fault for narrow in narrower(name) if (fault := _fault(found[narrow]))}
        if name == "auto":
            name = next((narrow for narrow in _NARROW if narrow not in below), "fp32")
            wanting = [f"{narrow}: {below[narrow]}" for narrow in _NARROW if narrow in below]
            reason = "; ".join([*wanting, "the narrowest that loses little"])
        elif name in below:
            reason = f"forced: {below[name]}"
            faults.append(f"{stage} in {name}: {below[name]}")
        else:
            reason = "asked for"
        chosen[stage] = Chosen(name, reason, dict(found.get(name, {"top1": 1.0, "kl": 0.0})))
    if faults and not force:
        raise ExportError(
            "these stages lose more than they may, measured on tokens of the fp32 model:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
            + "\nExport them wider (--precision STAGE=int8), let the export choose (--precision auto), or accept it with --force."
        )
    return chosen


def _fault(found: Mapping[str, float]) -> str:
    """What is below a floor, "" where nothing is or where no floor holds."""
    if found["entropy"] > UNTRAINED:
        return ""
    faults = []
    if found["top1"] < LEAST_TOP1:
        faults.append(f"the likeliest token is the same in {found['top1']:.1%}, the least is {LEAST_TOP1:.0%}")
    if found["kl"] > MOST_KL:
        faults.append(f"the divergence is {found['kl']:.3f} nats a token, the most is {MOST_KL}")
    return " and ".join(faults)
