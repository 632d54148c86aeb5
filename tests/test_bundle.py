"""A bundle that was cut short, changed, forged or made by another version: refused as a whole before any of it is used, every fault
named at once, and never a file opened outside its folder."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import musiclm_deploy as md
from musiclm_deploy.runtime.bundle import FORMAT, MANIFEST, Bundle, BundleError, Manifest


@pytest.fixture
def copy(tiny_bundle, tmp_path) -> Path:
    """The tiny bundle with every file linked, not copied: a test replaces files, it never writes into one."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle", copy_function=os.link))


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((bundle / MANIFEST).read_bytes())
    edit(values)
    replace(bundle / MANIFEST, json.dumps(values).encode())


def forge(bundle: Path, name: str, data: bytes) -> None:
    """Replace a file and its record, as someone would who wants the bundle to open."""
    if (bundle / name).exists():
        (bundle / name).unlink()
    (bundle / name).write_bytes(data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(bundle, lambda values: values["files"].update({name: record}))


def faults_of(bundle: Path) -> list[str]:
    """The faults that opening lists, one each."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    first, *faults = str(caught.value).split("\n  - ")
    assert first == f"the bundle {bundle} cannot be used:"
    return faults


def refuses(bundle: Path, *expected: str) -> None:
    """Opening lists just these faults, each given by how it begins."""
    faults = faults_of(bundle)
    assert len(faults) == len(expected) and all(map(str.startswith, faults, expected)), faults


# --- what is right


def test_round_trip(tiny_bundle, tmp_path):
    """What the exporter writes is what the runtime reads, to the last field, and writing it again gives the same bytes."""
    bundle = Bundle.open(tiny_bundle)
    data = (tiny_bundle / MANIFEST).read_bytes()
    assert bundle.manifest.to_json().encode() == data
    assert bundle.sha256 == hashlib.sha256(data).hexdigest()
    again = tmp_path / "again"
    shutil.copytree(tiny_bundle, again)
    (again / MANIFEST).write_text(bundle.manifest.to_json(), encoding="utf-8")
    assert Bundle.open(str(again)).manifest == bundle.manifest
    assert asdict(bundle.manifest) == json.loads(data)


def test_every_file_is_listed(tiny_bundle):
    """A file that the manifest does not list would be used unchecked."""
    manifest = Bundle.open(tiny_bundle).manifest
    assert {path.name for path in tiny_bundle.iterdir()} == {*manifest.files, MANIFEST}


def test_copies_are_the_same_bundle(tiny_bundle, copy):
    """The hash names the content, not the place."""
    assert Bundle.open(copy).sha256 == Bundle.open(tiny_bundle).sha256


# --- files


@pytest.mark.parametrize("name", ["semantic.onnx", "coarse.onnx.data", "mulan_text.onnx", "conditioner.onnx", "tokenizer.json"])
@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_changed_byte(copy, name, at):
    """One wrong bit in a graph, in weights or in the tokenizer: the size is right, only the hash tells."""
    data = bytearray((copy / name).read_bytes())
    data[int(at * len(data)) if at == 0.5 else int(at)] ^= 1
    replace(copy / name, bytes(data))
    refuses(copy, f"'{name}': its content was changed after the export (SHA-256 differs)")


def test_truncated_file(copy):
    """An interrupted copy says how much is there and how much should be."""
    data = (copy / "codec_stream.onnx.data").read_bytes()
    replace(copy / "codec_stream.onnx.data", data[:-100])
    sizes = f"{len(data) - 100} bytes, the manifest says {len(data)}"
    refuses(copy, f"'codec_stream.onnx.data': {sizes}: it was cut short or changed")


def test_a_pointer_of_git_lfs(copy):
    """Fault: a bundle from a clone without LFS is called cut short, and is copied again and again."""
    replace(copy / "fine.onnx.data", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5363136\n")
    refuses(copy, "'fine.onnx.data': a pointer of Git LFS, in place of the file itself. Fetch it with: git lfs pull.")


def test_missing_file(copy):
    """A file that is gone, and a folder of its name."""
    (copy / "fine.onnx").unlink()
    (copy / "coarse_context.onnx").unlink()
    (copy / "coarse_context.onnx").mkdir()
    assert sorted(faults_of(copy)) == ["'coarse_context.onnx': the file is missing", "'fine.onnx': the file is missing"]


def test_several_faults_at_once(copy):
    """Everything that is wrong with the files is in one message."""
    replace(copy / "semantic.onnx", b"changed")
    (copy / "mulan_audio.onnx").unlink()
    data = (copy / "tokenizer.json").read_bytes()
    replace(copy / "tokenizer.json", b" " + data[1:])
    faults = faults_of(copy)
    assert len(faults) == 3 and {fault.split("'")[1] for fault in faults} == {"semantic.onnx", "mulan_audio.onnx", "tokenizer.json"}


# --- no bundle at all


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_not_a_bundle(tmp_path, kind):
    """A wrong path says what a bundle has and how to make one."""
    path = tmp_path / "place"
    path.write_text("") if kind == "file" else path.mkdir() if kind == "empty" else None
    why = "there is no such folder" if kind == "missing" else "it has no musiclm.json"
    with pytest.raises(BundleError, match=re.escape(f"{path} is not a bundle: {why}. Make one with export_all.py.")):
        Bundle.open(path)


def test_what_is_given_in_place_of_the_folder(tmp_path):
    """Fault: the manifest itself is said to have no manifest; a name that no folder can have is an error of the system."""
    (tmp_path / MANIFEST).write_text("{}")
    manifest, long = tmp_path / MANIFEST, "a" * 300
    for path, why in ((manifest, "is not a bundle, but the manifest of one. Give its folder."), (long, "File name too long.")):
        with pytest.raises(BundleError, match=re.escape(why)):
            Bundle.open(path)


# --- the manifest


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04", b"[" * 100_000, b'{"format": 1' + b"1" * 5000 + b"}", b'{"format": "\\ud800'],
    ids=["empty", "cut", "bytes", "zip", "deep", "huge number", "surrogate"],
)
def test_not_json(copy, data):
    """Damaged JSON in every form that Python's reader has its own exception for."""
    replace(copy / MANIFEST, data)
    refuses(copy, "musiclm.json is not JSON: ")


@pytest.mark.parametrize("value", [[], 3, None, "musiclm", {}, {"format": None}, {"format": 0}, {"format": 3}, {"format": "1"}])
def test_json_of_something_else(copy, value):
    """Valid JSON that is no manifest of ours."""
    replace(copy / MANIFEST, json.dumps(value).encode())
    found = value.get("format") if isinstance(value, dict) else None
    refuses(copy, f"musiclm.json has format {found!r}, this version reads {FORMAT}: export the checkpoints again")


def test_newer_format(copy):
    """A bundle of a later version asks for an update, not for another export; nothing else of it is judged."""
    edit_manifest(copy, lambda values: values.update(format=FORMAT + 1, something_new=1))
    refuses(copy, f"musiclm.json has format {FORMAT + 1}, this version reads {FORMAT}: update musiclm-deploy")


def test_unknown_field(copy):
    """A field that this version does not know may change what the rest means."""
    edit_manifest(copy, lambda values: (values.update(extra=1), values["fine"].update(rotary=True)))
    refuses(copy, "musiclm.json: unknown field 'extra'", "musiclm.json: fine: unknown field 'rotary'")


def test_missing_field(copy):
    """Top level and nested; defaults in the code do not fill a hole in a file."""
    edit_manifest(
        copy, lambda values: (values.pop("codec"), values["semantic"].pop("dim"), values["coarse"]["sampling"].pop("temperature"))
    )
    refuses(
        copy,
        "musiclm.json: the field 'codec' is missing",
        "musiclm.json: semantic: the field 'dim' is missing",
        "musiclm.json: coarse: sampling: the field 'temperature' is missing",
    )


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("semantic.dim", "24", "semantic: dim: expected int, got '24'"),
        ("semantic.depth", True, "semantic: depth: expected int, got True"),
        ("coarse.heads", 2.0, "coarse: heads: expected int, got 2.0"),
        ("fine.bias", 5, "fine: bias: expected Bias, got 5"),
        ("fine.sampling.cond_scale", None, "fine: sampling: cond_scale: expected float, got None"),
        ("codec", [1], "codec: expected Codec, got [1]"),
        ("conditioner.namespaces.fine", "wide", "conditioner: namespaces: fine: expected int, got 'wide'"),
        ("files", ["semantic.onnx"], "files: expected dict, got ['semantic.onnx']"),
        ("unique_consecutive", 1, "unique_consecutive: expected bool, got 1"),
        ("codec.sample_hz", 0, "codec: sample_hz: expected at least 1, got 0"),
        ("semantic.max_length", -5, "semantic: max_length: expected at least 1, got -5"),
    ],
)
def test_wrong_value(copy, path, value, fault):
    """A field of the wrong type, or a count of nothing, is named with what it should be."""

    def put(values):
        *parents, last = path.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    edit_manifest(copy, put)
    refuses(copy, f"musiclm.json: {fault}")


def test_all_faults_of_a_manifest_at_once(copy):
    """Faults in different records do not hide each other."""
    edit_manifest(copy, lambda v: (v.update(extra=1), v["mulan"].pop("text"), v["coarse"].update(dim="x"), v["fine"].update(depth=[])))
    refuses(
        copy,
        "musiclm.json: unknown field 'extra'",
        "musiclm.json: mulan: the field 'text' is missing",
        "musiclm.json: coarse: dim: expected int, got 'x'",
        "musiclm.json: fine: depth: expected int, got []",
    )


def test_huge_value_is_shortened(copy):
    """A megabyte in the wrong place does not end up on the terminal."""
    edit_manifest(copy, lambda values: values["mulan"].update(dim_latent="x" * 1_000_000))
    (fault,) = faults_of(copy)
    assert len(fault) < 200


def test_unlisted_graph(copy):
    """A graph that is used must be one of the files that were hashed."""
    edit_manifest(copy, lambda values: (values["files"].pop("fine.onnx"), values["mulan"].update(text="other.onnx")))
    refuses(
        copy,
        "other.onnx: the manifest uses this file but does not list it",
        "fine.onnx: the manifest uses this file but does not list it",
    )


# --- paths that leave the bundle


def outside(copy: Path) -> Path:
    secret = copy.parent / "secret.onnx"
    secret.write_bytes(b"secret")
    return secret


@pytest.mark.parametrize("how", ["dots", "absolute", "absolute inside", "hidden dots"])
def test_path_out_of_the_bundle(copy, how):
    """A manifest from elsewhere must not make the runtime open, or tell the hash of, any other file of this machine."""
    secret = outside(copy)
    name = {
        "dots": "../secret.onnx",
        "absolute": str(secret),
        "absolute inside": str(copy / "fine.onnx"),
        "hidden dots": "a/../../secret.onnx",
    }[how]
    edit_manifest(copy, lambda values: values["files"].update({name: {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}}))
    refuses(copy, f"'{name}': this path leaves the bundle")


@pytest.mark.parametrize("name", ["link.onnx", "folder/secret.onnx"])
@pytest.mark.parametrize("given", [b"SECRET", b"other size"])
def test_a_link_to_another_file_than_the_manifest_describes(copy, name, given):
    """A link may lead out of the bundle, but to the very file that the manifest describes: nothing is told of any other one."""
    (copy / "link.onnx").symlink_to(outside(copy))
    (copy / "folder").symlink_to(copy.parent)
    edit_manifest(copy, lambda values: values["files"].update({name: {"bytes": len(given), "sha256": hashlib.sha256(given).hexdigest()}}))
    refuses(copy, f"'{name}': it is a link that leaves the bundle, to another file than the manifest describes")


def linked(bundle: Path, folder: Path, layout: str) -> Path:
    """A folder of links to the bundle's files: in one folder under their hashes, as huggingface_hub caches them, or in a folder for each,
    as git-annex and DVC keep them."""
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in bundle.iterdir():
        place = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        place = place / file.name if layout == "a folder each" else place
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        (snapshot / file.name).symlink_to(os.path.relpath(place, snapshot))
    return snapshot


def test_a_folder_whose_name_is_not_utf8(tiny_bundle, tmp_path, music):
    """A folder of an old system: ONNX Runtime takes no such path, in words about its constructor."""
    folder = shutil.copytree(tiny_bundle, tmp_path / os.fsdecode(b"caf\xe9"), copy_function=os.link)
    with md.load(folder, device="cpu") as model:
        song = model.generate("x", seconds=0.05)
        assert (song.audio == music.generate("x", seconds=0.05).audio).all()
        assert md.read_record(song.save(tmp_path / "a.wav"))["bundle"] == folder.name


@pytest.mark.parametrize("layout", ["one folder", "a folder each"])
def test_a_bundle_of_links(tiny_bundle, tmp_path, music, layout):
    """`snapshot_download` returns such a folder; each of its files "leaves the bundle", and ONNX Runtime refuses the second layout."""
    with md.load(linked(tiny_bundle, tmp_path, layout), device="cpu") as model:
        assert (model.generate("x", seconds=0.05).audio == music.generate("x", seconds=0.05).audio).all()
        np.testing.assert_array_equal(model.embed_text("calm piano"), music.embed_text("calm piano"))
        assert "logits" in {output.name for output in model.graphs.session("fine.onnx").get_outputs()}


def test_links_lend_no_other_weights(tiny_bundle, tmp_path):
    """ONNX Runtime opens what lies beside the file that a graph's link leads to. No hash of the manifest is that file's."""
    snapshot = linked(tiny_bundle, tmp_path, "one folder")
    blob = (snapshot / "fine.onnx").resolve()
    (blob.parent / "weights").write_bytes((tiny_bundle / "fine.onnx.data").read_bytes())
    (snapshot / "weights").symlink_to(blob.parent / "weights")
    data = with_data_at(tiny_bundle, "weights")
    blob.write_bytes(data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(snapshot, lambda values: values["files"].update({"fine.onnx": record}))
    with (
        md.load(snapshot, device="cpu") as model,
        pytest.raises(BundleError, match=r"ONNX Runtime refuses .* weights not found"),
    ):
        model.graphs.session("fine.onnx")


def test_a_link_to_nothing(copy):
    """A cache that was cleaned: what is missing is the file that the link leads to."""
    (copy / "fine.onnx").unlink()
    (copy / "fine.onnx").symlink_to("../blobs/123")
    refuses(copy, "'fine.onnx': it is a link to ../blobs/123, where there is no file")


# --- after it was opened


def test_another_current_folder(tiny_bundle, tmp_path, monkeypatch):
    """Graphs and weights are opened when they are first used: a program that has moved meanwhile had no file there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bundle").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    with md.load("bundle", device="cpu") as model:
        monkeypatch.chdir(tmp_path / "elsewhere")
        song = model.generate("x", seconds=0.1, num_samples=2)
        assert song.settings["bundle"] == tiny_bundle.name  # "bundle" leads nowhere from here
        assert model.semantic_tokens((song.audio, song.sample_rate)).shape[0] == 1
        monkeypatch.chdir(tmp_path)
        assert model.generate("x", seconds=0.05).settings["bundle"] == "bundle"


def test_a_link_that_is_turned(copy, tmp_path):
    """`current -> v1` becomes `current -> v2` under a running server: one bundle's manifest with another one's graphs."""
    (tmp_path / "current").symlink_to(copy)
    with md.load(tmp_path / "current", device="cpu") as model:
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to(tmp_path)
        assert model.embed_text("x").shape == (1, model.bundle.manifest.mulan.dim_latent)


@pytest.mark.parametrize("name", ["fine.onnx", "fine.onnx.data"])
def test_another_export_in_its_place(copy, name):
    """`--overwrite` under a running server: graphs that had not been used yet were the new bundle's, unchecked."""
    with md.load(copy, device="cpu") as model:
        replace(copy / name, (copy / name).read_bytes())
        for use in (lambda: model.graphs.session("fine.onnx"), lambda: model.backend.batch("fine")):
            with pytest.raises(BundleError, match=r"fine\.onnx.* was changed or replaced after the bundle was opened"):
                use()


def test_the_home_folder(copy, monkeypatch):
    """`load("~/bundle")`: no shell has put the home folder there."""
    monkeypatch.setenv("HOME", str(copy.parent))
    assert Bundle.open("~/bundle").root == copy.resolve()
    with pytest.raises(BundleError, match=r"^~nobody-of-this-name/bundle is not a bundle: there is no such folder"):
        Bundle.open("~nobody-of-this-name/bundle")


@pytest.mark.parametrize("name", ["nul\0byte", "x" * 5000, "loop", ""])
def test_impossible_path(copy, name):
    """Names on which Python's path functions raise are faults like any other."""
    (copy / "loop").symlink_to("loop")
    edit_manifest(copy, lambda values: values["files"].update({name: {"bytes": 6, "sha256": "0"}}))
    refuses(copy, f"{name!r}: ")


def test_link_within_the_bundle(copy):
    """Only what leaves is refused: a link to another file of the bundle, or a bundle reached through a link, is fine."""
    (copy / "fine.onnx").rename(copy / "fine.real")
    (copy / "fine.onnx").symlink_to("fine.real")
    (copy.parent / "alias").symlink_to(copy)
    assert isinstance(Bundle.open(copy.parent / "alias").manifest, Manifest)


# --- forged bundles: every hash is right, the content is not


def with_data_at(copy: Path, location: str) -> bytes:
    """fine.onnx, its weights said to be at `location`."""
    model = onnx.load(copy / "fine.onnx", load_external_data=False)
    moved = 0
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value, moved = location, moved + 1
    assert moved
    return model.SerializeToString()


@pytest.mark.parametrize("how", ["dots", "absolute", "link", "missing"])
def test_weights_outside_the_bundle(copy, how):
    """A graph may name the file of its weights: ONNX Runtime itself keeps to the bundle's folder, links included. That is relied on."""
    weights = copy.parent / "weights"
    weights.write_bytes((copy / "fine.onnx.data").read_bytes())
    (copy / "link").symlink_to(weights)
    location = {"dots": "../weights", "absolute": str(weights), "link": "link", "missing": "nowhere"}[how]
    forge(copy, "fine.onnx", with_data_at(copy, location))
    with (
        md.load(copy, device="cpu") as model,
        pytest.raises(BundleError, match=r"fine\.onnx: ONNX Runtime refuses this graph: .*[Ee]xternal data"),
    ):
        model.graphs.session("fine.onnx")


@pytest.mark.parametrize("data", [b"\n", b"garbage", b"\x08\x0b" + b"\0" * 50])
def test_graph_that_is_none(copy, data):
    """ONNX Runtime's own exceptions, which share no base class, come out as the bundle's error with the file's name."""
    forge(copy, "semantic.onnx", data)
    with md.load(copy, device="cpu") as model, pytest.raises(BundleError, match=r"semantic\.onnx: ONNX Runtime refuses this graph: "):
        model.graphs.session("semantic.onnx")


def test_weights_cut_short_with_a_new_hash(copy):
    """Weights shorter than the graph reads."""
    forge(copy, "coarse.onnx.data", (copy / "coarse.onnx.data").read_bytes()[:100])
    with md.load(copy, device="cpu") as model, pytest.raises(BundleError, match=r"coarse\.onnx: ONNX Runtime refuses this graph: "):
        model.graphs.session("coarse.onnx")


@pytest.mark.parametrize("data", [b"\n", b"[]", b'{"model": {"type": "BPE"}}', b"\xff"])
def test_tokenizer_that_is_none(copy, data):
    """The tokenizer is read by code of its own: its faults name the file as well."""
    forge(copy, "tokenizer.json", data)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json of CLIP's tokenizer: "):
        md.load(copy, device="cpu")
