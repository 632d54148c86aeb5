"""Compares the clips of libmusiclm with those of runtime/: windows, sequences, tokens, everything that can be seen of them.

In: the program that was built of clip.cpp beside this file, how many scenarios. Out: 1 and both reports of the first scenario in which the
two differ, else a line with what was compared. A scenario is a model's numbers, a plan, and what chance does: both sides take the same
numbers of it from SplitMix64, begin windows and hand over made-up tokens in the same random order, change prompts, cut the clip off and go
on from its tokens, forget.

    g++ -std=c++17 -O2 -Iembed/include -Iembed/src -Ikernels/decoder_step -o clip
        embed/tests/clip.cpp embed/src/{clip,sequence,windows,manifest,json_text}.cpp
    python embed/tests/compare_clips.py ./clip 600
"""

from __future__ import annotations

import itertools
import json
import random
import struct
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np

from musiclm_deploy.runtime.bundle import STAGES, Bias, Codec, Decoder, Manifest, Sampling, Segment, Step
from musiclm_deploy.runtime.clip import Clip
from musiclm_deploy.runtime.music import Tokens
from musiclm_deploy.runtime.request import default_frames
from musiclm_deploy.runtime.resume import Known, given_tokens
from musiclm_deploy.runtime.sequence import Context, Sequence
from musiclm_deploy.runtime.windows import Span, Window, WindowPlan, plan_windows

_MASK = (1 << 64) - 1
_ENDED = 5  # ML_ENDED
_BAD_ARGUMENT = 1  # ML_BAD_ARGUMENT


def mixed(x: int) -> int:
    """Return SplitMix64's number after x."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


# --- scenarios


def made_model(chance: random.Random) -> dict[str, Any]:
    """Return the numbers of a model."""
    coarse, fine, codebook, tokens = chance.randint(1, 4), chance.randint(1, 5), chance.randint(4, 40), chance.randint(4, 60)
    kinds = ["none", "prefix", "cross_attention"]
    semantic_rows = {"semantic": 0, "start": tokens, "padding": tokens + 1}
    coarse_rows = {"semantic": 0, "coarse": tokens, "semantic_start": tokens + coarse * codebook}
    coarse_rows |= {"coarse_start": coarse_rows["semantic_start"] + 1, "padding": coarse_rows["semantic_start"] + 2}
    fine_rows = {"coarse": 0, "fine": coarse * codebook, "coarse_start": (coarse + fine) * codebook}
    fine_rows |= {"fine_start": fine_rows["coarse_start"] + 1, "padding": fine_rows["coarse_start"] + 2}
    bias = [chance.randint(9, 999), 2 * (coarse + fine) - 1, chance.randint(1, 50) if chance.random() < 0.8 else None]
    common = {"guidance": False, "bias": None, "coarse_quantizers": None, "fine_quantizers": None}
    decoders = [
        common | {"vocabulary": tokens + 1, "max_length": chance.choice([1, 2, 5, 14, 40, 100]), "rows": semantic_rows},
        common | {"vocabulary": codebook + 1, "max_length": chance.choice([1, 2, 6, 12, 30]), "rows": coarse_rows},
        common | {"vocabulary": codebook, "max_length": chance.choice([1, 3, 5, 9, 30]), "rows": fine_rows},
    ]
    decoders[1] |= {"coarse_quantizers": coarse}
    decoders[2] |= {"coarse_quantizers": coarse, "fine_quantizers": fine, "bias": bias if chance.random() < 0.8 else None}
    for decoder in decoders:
        decoder |= {"conditioning": chance.choice(kinds), "guidance": chance.random() < 0.5, "segments": [], "semantic_window": None}
    reads_segments = chance.random() < 0.3
    if reads_segments:
        codes = {"semantic": (1, tokens), "coarse": (coarse, codebook), "fine": (fine, codebook)}
        add_segments(chance, decoders, codes)
    hz, hop = chance.choice([(16000, 320), (24000, 480), (44100, 1470), (32000, 640), (16000, 333), (48000, 7)])
    rate = hz / hop * chance.choice([0.3, 0.5, 1.0, 1.0, 1.5, chance.uniform(0.1, 3)])
    return {
        "unique": chance.random() < 0.5 and not reads_segments,
        "codes": codebook,
        "seconds": chance.choice([None, chance.uniform(0.01, 9)]),
        "rate": chance.choice([rate, rate, 50.0, 49.9, 25.0, 12.5]),
        "hz": hz,
        "hop": hop,
        "groups": 1 if reads_segments else chance.choice([1, 1, 1, 2, 3]),
        "lookahead": chance.choice([1, 1, 3, 10]),
        "decoders": decoders,
    }


def add_segments(chance: random.Random, decoders: list[dict[str, Any]], codes: dict[str, tuple[int, int]]) -> None:
    """Let the decoders read segments. codes: quantizers and codes of each stage."""
    clap, absolute = (chance.randint(1, 4), chance.randint(2, 9)), chance.random() < 0.5
    for stage, names in enumerate((["semantic"], ["semantic", "coarse"], ["coarse", "fine"])):
        segments, row, position = [], 1, 1
        for name, (quantizers, codebook) in [("clap", clap), *((name, codes[name]) for name in names)]:
            segments.append([name, row, row + 1, quantizers, codebook, position if absolute else None])
            row, position = row + 2 + quantizers * codebook, position + 500
        decoders[stage] |= {"segments": segments, "conditioning": "tokens", "guidance": False, "rows": {"padding": 0}, "bias": None}
        decoders[stage]["vocabulary"] = segments[-1][4] + 1
    decoders[1]["semantic_window"] = chance.choice([None, chance.randint(1, 20)])


def made_plan(chance: random.Random, model: dict[str, Any], frames: int | None) -> dict[str, Any]:
    """Return the arguments of `plan_windows`: the trained windows, the caller's own, or windows that grow."""
    windows: list[list[int | None]] = [[None, None] for _ in STAGES]
    kind = chance.choice(["trained", "own", "growing", "growing", "bad"])
    for stage, decoder in enumerate(model["decoders"]):
        most = decoder["max_length"]
        if kind == "own" and chance.random() < 0.7:
            length = chance.randint(1, most)
            windows[stage] = [length, chance.randint(0, length - 1) if stage < 2 and chance.random() < 0.7 else None]
        elif kind == "bad" and chance.random() < 0.2:
            windows[stage] = [chance.randint(-1, most + 2), chance.randint(-1, most)]
    return {
        "frames": frames,
        "samples": 0 if frames is None else max(frames * model["hop"] - chance.choice([0, 0, 7, model["hop"] // 2]), 1),
        "windows": windows,
        "first": chance.randint(1, 12) if kind == "growing" else None,
        "growth": chance.choice([1.1, 1.5, 2.0, 2.0, 3.7, 1e8]),
    }


def made_scenario(number: int) -> dict[str, Any]:
    """Return a scenario by its number."""
    chance = random.Random(number)
    model, endless = made_model(chance), chance.random() < 0.3
    frames = None if endless else chance.choice([1, 2, 7, 30, 46, 80])
    ends, forgets = chance.random() < 0.4, endless and chance.random() < 0.6
    cuts = [] if forgets or chance.random() < 0.4 else sorted(chance.sample(range(300), chance.randint(1, 4)))
    later = None if chance.random() < 0.7 else made_plan(chance, model, frames)
    codes = model["codes"]
    return made_plan(chance, model, frames) | {
        "number": number,
        "model": model,
        "seed": chance.getrandbits(64),
        "ends": ends,
        "steps": 300 if endless else 4000,
        "sampling": [[chance.choice([0.0, 0.9, 1.0]), chance.uniform(0, 1), chance.choice([1.0, 3.0, 2.7])] for _ in STAGES],
        "end_every": [chance.choice([0, 10, 60]), chance.choice([0, 10, 60]), 0],
        "tokens": [chance.randint(1, model["decoders"][0]["vocabulary"] - 1), chance.randint(1, codes), codes],
        "change_every": chance.choice([0, 0, 5, 17]),
        "forget_every": chance.choice([1, 5]) if forgets else 0,
        "kept": chance.choice([0, 3, 20]),
        "cuts": cuts,
        "damage": None if chance.random() < 0.8 else [chance.randint(0, 3), chance.randint(0, 99), chance.randint(-1, codes + 1)],
        "later": later,
    }


# --- the Python side of clip.cpp


def manifest_of(model: dict[str, Any]) -> Manifest:
    """Return a manifest with what planning and clips read."""
    step = Step(1, 1, 1, False, False, False, None, "fp32", 32, {})
    decoders = {}
    for stage, given in zip(STAGES, model["decoders"], strict=True):
        told = ("guidance", "vocabulary", "coarse_quantizers", "fine_quantizers", "rows", "max_length", "semantic_window")
        named = {name: given[name] for name in told} | {"segments": [Segment(*one) for one in given["segments"]] or None}
        bias = None if given["bias"] is None else Bias(*given["bias"])
        sizes = {"dim": 1, "depth": 1, "heads": 1, "cache_head_size": 1}
        decoders[stage] = Decoder(f"{stage}.onnx", None, given["conditioning"], bias=bias, step=step, **sizes, **named)
    codes = model["codes"]
    codec = Codec("codec_stream.onnx", None, model["hz"], model["hop"], 1, model["groups"], codes, model["lookahead"], 1, {}, 1)
    rest: dict[str, Any] = {"mulan": None, "conditioner": None, "wav2vec": None, "seconds": model["seconds"]}
    rest |= {name: {} for name in ("made_by", "sources", "settings", "errors", "quality", "files")}
    return Manifest(codec=codec, unique_consecutive=model["unique"], semantic_tokens_per_second=model["rate"], **decoders, **rest)


class Scenario:
    """Runs one, as the class of this name in clip.cpp."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.manifest, self.lines, self.seen = given, manifest_of(given["model"]), [], Counter()
        self.prompts: list[dict[str, Context]] = []
        self.changes: list[tuple[int, int, int]] = []  # semantic window, frame, number of the conditioning
        self.running: list[list[Any]] = []  # sequence, tokens made
        self.step = 0

    def run(self) -> list[str]:
        """Return the report."""
        given = self.given
        try:
            self.print("default frames", default_frames(self.manifest))
            self.plan = self.plan_of(given)
        except ValueError as error:
            self.seen["plans refused"] += 1
            return [*self.lines, f"refused: {error}"]
        self.print_plan()
        try:
            self.clip = self.new_clip(None)
            while self.step < given["steps"] and not self.clip.done:
                if not self.act():
                    self.lines.append("stuck")
                    self.seen["stuck"] += 1
                    break
                if given["change_every"] and self.step % given["change_every"] == 3:
                    self.change()
                if given["forget_every"] and self.step % given["forget_every"] == 0:
                    self.forget()
                if self.step in given["cuts"]:
                    self.go_on()
                self.step += 1
            self.print_tokens()
            self.seen["clips complete" if self.clip.done else "clips without end"] += 1
        except (AssertionError, ValueError):  # windows that the tokens do not fit, where they are not those that the tokens were made with
            self.seen["going on refused"] += 1
            self.lines.append(f"stopped: {_BAD_ARGUMENT}")
        return self.lines

    def print(self, what: str, *numbers: Any) -> None:
        self.lines.append(f"{what}:{''.join(f' {int(number)}' for number in numbers)}")

    def random(self, salt: int) -> int:
        return mixed((mixed((self.given["seed"] + salt) & _MASK) + self.step) & _MASK)

    def plan_of(self, planned: dict[str, Any]) -> WindowPlan:
        windows = {stage: Window(*window) for stage, window in zip(STAGES, planned["windows"], strict=True)}
        return plan_windows(self.manifest, planned["frames"], planned["samples"], None, windows, planned["first"], planned["growth"])

    def new_clip(self, known: Known | None) -> Clip:
        sampling = {stage: Sampling(*one) for stage, one in zip(STAGES, self.given["sampling"], strict=True)}
        return Clip(self.manifest, self.plan, sampling, self.given["seed"], 0, self.contexts(0), self.given["ends"], known)

    def contexts(self, number: int) -> dict[str, Context]:
        while len(self.prompts) <= number:
            made = {}
            for stage, decoder in enumerate(self.given["model"]["decoders"]):
                n, mark, arrays = len(self.prompts), 100 * len(self.prompts) + 10 * stage, {}
                if decoder["conditioning"] == "prefix":
                    arrays["prefix_embeddings"] = np.full((1, n + 1, 3), mark, np.float32)
                elif decoder["conditioning"] == "cross_attention":
                    for layer in range(2):
                        arrays[f"context.{layer}.key"] = np.full((1, 3, n + 2), mark + 2 * layer, np.float32)
                        arrays[f"context.{layer}.value"] = np.full((1, n + 2, 3), mark + 2 * layer + 1, np.float32)
                first = next(iter(decoder["segments"]), None)
                made[STAGES[stage]] = Context(arrays, None if first is None else np.full(first[3], n % first[4]))
            self.prompts.append(made)
        return self.prompts[number]

    def act(self) -> bool:
        ready = [stage for stage in STAGES if self.clip.ready(stage)]
        if not ready and not self.running:
            return False
        choice = self.random(1) % (len(ready) + len(self.running))
        if choice < len(ready):
            self.begin(ready[choice])
        else:
            self.hand_over(choice - len(ready))
        running = [any(of == stage for of, _, _ in self.clip._running.values()) for stage in STAGES]
        self.print("state", self.clip.frames("coarse"), self.clip.frames("fine"), *running)
        return True

    def begin(self, stage: str) -> None:
        self.print("needed", STAGES.index(stage), self.clip.needed_at_frame(stage))
        s: Sequence = self.clip.begin(stage)
        self.running.append([s, 0])
        self.seen[f"{stage} windows"] += 1
        self.seen["windows with a prefix"] += s.known > 0
        self.print("ids", *s.prompt.ids)
        if s.position_ids is not None:
            self.print("positions", *s.position_ids[: s.capacity])
        self.print("query", *s.prompt.query)
        self.print("key", *s.prompt.key)
        self.print("place", *s.rules.place)
        self.print("rules", *s.rules[1:])
        self.print("counts", STAGES.index(stage), s.known, s.in_frames, s.steps, s.draw.item, s.draw.first, s.guided)
        arrays = s.context.arrays
        marks = [arrays[f"context.{layer}.{kind}"] for kind in ("key", "value") for layer in range(2)] if "context.0.key" in arrays else []
        length = marks[0].shape[2] if marks else 0
        self.print("layers", *(array.flat[0] for array in [*marks, *([] if s.context.prefix is None else [s.context.prefix])]))
        prompt = next(number for number, of in enumerate(self.prompts) if of[stage] is s.context)
        self.seen["windows of a later prompt"] += prompt > 0
        self.print("context", length, s.prefix_length, bool(marks), prompt)
        temperature, scale = struct.unpack("<2I", struct.pack("<2f", s.draw.sampling.temperature, s.draw.sampling.cond_scale))
        self.lines.append(f"draw: {s.draw.seed} {temperature:08x} {scale:08x}")

    def hand_over(self, which: int) -> None:
        running = self.running[which]
        s: Sequence = running[0]
        stage, left = s.rules.stage, s.steps - running[1]
        count = left if self.random(2) % 3 == 0 else self.random(3) % (left + 1)
        tokens, done = [], left == count and self.random(4) % 4 != 0
        for _ in range(count):
            chance = mixed((mixed((self.given["seed"] + 16 + stage) & _MASK) + s.draw.first + running[1]) & _MASK)
            every = self.given["end_every"][stage]
            if s.rules.end >= 0 and every and chance // 1024 % every == 0 and not s.forbids_end(running[1]):
                done = True
                self.seen["ends drawn"] += 1
                break
            tokens.append(chance % self.given["tokens"][stage])
            running[1] += 1
        self.print("takes", *tokens)
        self.seen["tokens"] += len(tokens)
        self.clip.take(s, np.array(tokens, np.int64), done)
        if done:
            del self.running[which]

    def change(self) -> None:
        number = len(self.prompts)
        made = self.contexts(number)
        try:
            heard = self.clip.change(made)
        except ValueError as error:
            self.lines.append(f"not changed: {error} {_ENDED}")
            return
        self.seen["prompts changed"] += 1
        self.print("changed", heard, *self.clip.conditioned_from)
        self.changes.append((*self.clip.conditioned_from, number))

    def forget(self) -> None:
        self.clip.forget(max(self.clip.frames("fine") - self.given["kept"], 0))
        self.print("begins at", self.clip.begins_at)
        self.seen["times forgotten"] += self.clip.begins_at > 0
        self.print_tokens()

    def go_on(self) -> None:
        self.print_tokens()
        tokens = self.clip.tokens
        if self.given["damage"] is not None:
            tokens = self.damaged(tokens)
        [tokens] = given_tokens([tokens], self.manifest, False, True) or []
        self.running.clear()
        self.plan = self.plan_of(self.given["later"] or self.given)
        self.clip = self.new_clip(Known(tokens))
        for run, frame, prompt in self.changes:
            self.clip.condition(run, frame, self.contexts(prompt))
        self.seen["times gone on"] += 1
        self.print("goes on", self.clip.frames("coarse"), self.clip.frames("fine"))

    def damaged(self, tokens: Tokens) -> Tokens:
        what, place, value = self.given["damage"]
        if what < len(STAGES) and (line := getattr(tokens, STAGES[what])).size:
            line.reshape(-1)[place % line.size] = value
        if what == len(STAGES) and tokens.semantic_windows is not None:
            tokens.semantic_windows[place % len(tokens.semantic_windows), 0] += value
        return tokens

    def print_plan(self) -> None:
        plan = self.plan
        overlap = -1 if plan.semantic_overlap is None else plan.semantic_overlap
        self.print("plan", -1 if plan.frames is None else plan.frames, plan.timed, plan.lead, plan.semantic_length, overlap)
        for spans in filter(lambda one: one is not None, (plan.coarse, plan.fine, plan.semantic)):
            some: list[Span] = list(itertools.islice(spans, 40))
            numbers = [number for span in some for number in (span.start, span.new, span.stop)]
            self.print("spans", *numbers, *([] if spans.total is None else [len(spans)]))
        self.print("runs", *plan.runs)

    def print_tokens(self) -> None:
        clip, tokens = self.clip, self.clip.tokens
        for stage in STAGES:
            self.print(stage, *getattr(tokens, stage).ravel())
        runs = [] if self.plan.timed else list(clip.runs.values())
        if len(runs) > 1:
            assert [slice(*bounds) for bounds in tokens.semantic_windows.tolist()] == runs
        self.print("semantic runs", *(bound for run in runs for bound in (run.start, run.stop)))
        self.print("codes", *clip.codes(clip.begins_at, clip.frames("fine")).ravel())
        self.print("done", clip.done)


def main(program: str, count: int) -> int:
    scenarios = [made_scenario(number) for number in range(count)]
    lines = "".join(json.dumps(scenario) + "\n" for scenario in scenarios)
    found = subprocess.run([program], input=lines, capture_output=True, text=True)
    if found.returncode:
        print(f"{program} ended with {found.returncode} after {found.stdout.count(chr(10) + 'end')} scenarios:\n{found.stderr}")
        return 1
    reports, seen = found.stdout.split("end\n")[:-1], Counter()
    for given, report in zip(scenarios, reports, strict=True):
        scenario = Scenario(given)
        expected, made = scenario.run(), report.splitlines()
        seen += scenario.seen
        if expected != made:
            at = next(i for i, (one, other) in enumerate(itertools.zip_longest(expected, made)) if one != other)
            print(f"scenario {given['number']} differs in line {at}: {json.dumps(given)}")
            for name, report in (("Python", expected), ("C++", made)):
                print(f"--- {name}:\n" + "\n".join(report[max(at - 12, 0) : at + 3]))
            return 1
    print(f"{count} scenarios with equal reports of {found.stdout.count(chr(10))} lines: {dict(seen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
