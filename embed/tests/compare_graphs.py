"""Compares what the C++ library makes of prompts and codes with what Python makes of them, to the bit.

In: a bundle, the program `graphs` (graphs.cpp), ONNX Runtime's library. Out: a line for each file that differs, and then exit status 1.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musiclm_deploy.runtime.backend import open_session
from musiclm_deploy.runtime.bundle import STAGES, Bundle
from musiclm_deploy.runtime.codec import chunk_frames, decode_codes, first_chunk_frames
from musiclm_deploy.runtime.encoders import Encoders
from musiclm_deploy.runtime.graphs import Graphs
from musiclm_deploy.runtime.prompts import Blend

PROMPTS = [
    [(1.0, "calm piano")],
    [(1.0, "a fast techno beat with a deep bass line, and a voice that sings about the sea!? 120 bpm")],
    [(0.25, "drums")],
    [(-2.0, "drums")],  # alone: the direction away from it
    [(0.7, "calm piano"), (0.3, "brass band")],
    [(1.5, "guitar"), (-0.5, "violin"), (0.1, "rain"), (3.0, "techno")],
    [(1.0, "calm piano"), (-1.0, "calm piano")],  # nothing is left of it: an error
    [(1.0, "!?")],  # the tokenizer's padding is a token of it
]


def expected_prompt(encoders: Encoders, parts: list[tuple[float, str]]) -> dict[str, np.ndarray | str]:
    """Return Python's arrays for a prompt by the ends of the files' names, or its error."""
    prompt = Blend([(text, float(np.float32(weight))) for weight, text in parts])
    try:
        latents = encoders.latents([prompt])
    except ValueError as error:
        return {"error": f"1 {error}"}
    arrays: dict[str, np.ndarray | str] = {"latent": latents[0]}
    for stage, context in encoders.contexts(latents)[0].items():
        arrays |= {f"{stage}.{name.removesuffix('_embeddings')}": array for name, array in context.arrays.items()}
        entries = next((array.shape[2] for name, array in context.arrays.items() if name.endswith(".key")), 0)
        arrays[f"{stage}.sizes"] = f"{entries} {0 if context.prefix is None else len(context.prefix)}"
    return arrays


def feeds_of(chance: random.Random, first: int, chunk: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the frames of clips, and those of each feed: around the chunks' borders, all at once, one by one and by chance."""
    for frames in (0, 1, first - 1, first, first + 1, first + chunk, first + 3 * chunk + 2):
        yield frames, [frames]
    yield first + 2 * chunk + 1, [1] * (first + 2 * chunk + 1)
    left, feeds = first + 20 * chunk + 3, []
    while sum(feeds) < left:
        feeds.append(min(chance.randrange(2 * chunk), left - sum(feeds)))
    yield left, feeds


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Return how two arrays differ, "" if they have the same bits."""
    if found.size != expected.size:
        return f"{found.size} numbers, expected {expected.size}"
    differing = found.view(np.int32) != expected.view(np.int32)
    if not differing.any():
        return ""
    first = int(differing.argmax())
    return f"{differing.sum()} of {found.size} differ, the first is {first}: {found[first]!r}, expected {expected[first]!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("program", type=Path)
    parser.add_argument("library", help="path of libonnxruntime.so, or '' to search")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    codec = bundle.manifest.codec
    encoders = Encoders(bundle, Graphs(bundle, "cpu", given.threads, None))
    session = open_session(bundle.path(codec.stream), given.threads, spins=False, data=bundle.data_to_map())
    names = [output.name for output in session.get_outputs()]

    def graph(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    random_codes = np.random.default_rng(given.seed)
    clips = list(feeds_of(random.Random(given.seed), first_chunk_frames(codec), chunk_frames(codec)))
    codes = [random_codes.integers(codec.codebook_size, size=(frames, codec.quantizers)) for frames, _ in clips]
    faults = compared = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = ["\t".join(f"{weight}\t{text}" for weight, text in parts) for parts in PROMPTS]
        (folder / "prompts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (folder / "clips.txt").write_text("".join(f"{' '.join(map(str, feeds))}\n" for _, feeds in clips))
        for i, array in enumerate(codes):
            array.astype(np.int64).tofile(folder / f"clip.{i}.codes")
        subprocess.run([given.program.resolve(), given.bundle, given.library, str(given.threads), folder], check=True)

        expected: dict[str, np.ndarray | str] = {}
        for i, parts in enumerate(PROMPTS):
            expected |= {f"prompt.{i}.{end}": made for end, made in expected_prompt(encoders, parts).items()}
        for i, array in enumerate(codes):
            expected[f"clip.{i}.wave"] = decode_codes(codec, graph, array, lambda: None) if len(array) else np.empty(0, np.float32)
        found = {path.name for path in folder.glob("*.*.*") if not path.name.endswith(".codes")}
        for name in sorted(found ^ expected.keys()):
            print(f"{name}: {'Python' if name in found else 'C++'} has none")
            faults += 1
        for name in sorted(found & expected.keys()):
            made = expected[name]
            if isinstance(made, str):
                text = (folder / name).read_text(encoding="utf-8")
                fault = "" if text == made else f"{text!r}, expected {made!r}"
            else:
                fault = difference(np.fromfile(folder / name, np.float32), np.ascontiguousarray(made, np.float32).ravel())
            compared += 1
            if fault:
                print(f"{name}: {fault}")
                faults += 1
    print(f"{compared} files compared, {faults} differ; stages {', '.join(STAGES)}; {given.threads} threads, seed {given.seed}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
