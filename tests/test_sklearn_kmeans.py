"""Cluster centres out of scikit-learn's pickles: every way in which joblib writes them is read to the last bit, and nothing is executed."""

import bz2
import copyreg
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from support.kmeans_files import CALLED, Hostile, called, with_centres

from musiclm_deploy.model.sklearn_kmeans import read_cluster_centers


@pytest.fixture(scope="module")
def kmeans() -> MiniBatchKMeans:
    frames = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    return MiniBatchKMeans(19, random_state=0).fit(frames)


@pytest.mark.parametrize("compress", [0, 3, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_centres_of_joblib_files(kmeans: Any, tmp_path: Path, compress: Any, protocol: int) -> None:
    """Bytes of an array read a few too early or too late, for each way in which joblib places them."""
    joblib.dump(kmeans, tmp_path / "km.bin", compress=compress, protocol=protocol)
    np.testing.assert_array_equal(read_cluster_centers(tmp_path / "km.bin"), kmeans.cluster_centers_)


def test_centres_of_other_files(kmeans: Any, tmp_path: Path) -> None:
    """Doubles taken for floats, columns for rows, big-endian for little; the layout of joblib before 1.2; plain pickles."""
    doubles = KMeans(5, random_state=0).fit(np.random.default_rng(0).normal(size=(90, 3)))
    path = tmp_path / "km.bin"
    centres = doubles.cluster_centers_
    for variant in (centres, np.asfortranarray(centres), centres.astype(">f4"), centres.astype(np.float16)):
        doubles.cluster_centers_ = variant
        joblib.dump(doubles, path)
        found = read_cluster_centers(path)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, variant.astype(np.float32))
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps(kmeans, protocol=protocol))
        np.testing.assert_array_equal(read_cluster_centers(path), kmeans.cluster_centers_)

    class Unaligned(joblib.numpy_pickle.NumpyPickler):
        def _create_array_wrapper(self, array: np.ndarray) -> Any:
            wrapper = super()._create_array_wrapper(array)
            del wrapper.numpy_array_alignment_bytes
            return wrapper

    with path.open("wb") as file:
        Unaligned(file, protocol=3).dump(kmeans)
    np.testing.assert_array_equal(read_cluster_centers(path), kmeans.cluster_centers_)


def test_centres_alone(kmeans: Any, tmp_path: Path) -> None:
    """Doubles or columns of numpy.save misread; an array longer than its file that is made room for, or one of objects unpickled."""
    path = tmp_path / "km.npy"
    centres = kmeans.cluster_centers_
    for variant in (centres, np.asfortranarray(centres), centres.astype(">f8")):
        np.save(path, variant)
        np.testing.assert_array_equal(read_cluster_centers(path), centres)
    whole = path.read_bytes()
    for data in (whole[:-1], whole.replace(b"(19, 7)", b"(1900000000000, 7)"), whole[:40]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"km\.npy: not a file of joblib or pickle, or a damaged one"):
            read_cluster_centers(path)
    np.save(path, np.array([[Hostile()]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"km\.npy: not a"):
        read_cluster_centers(path)
    assert not CALLED


# --- hostile and damaged files


class HostileState(dict):
    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (HostileState,), {"a": 1}  # type: ignore[attr-defined]

    def __setstate__(self, state: Any) -> None:
        called("by setstate")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "reduce": lambda: pickle.dumps(Hostile(), protocol=4),
    "setstate": lambda: pickle.dumps(HostileState(), protocol=4),
    "inside": lambda: pickle.dumps({"cluster_centers_": [Hostile()]}, protocol=2),
    "eval": lambda: b"cbuiltins\neval\n(V1\ntR.",
    "inst": lambda: b"(S'true'\nios\nsystem\n.",
    "persistent id": lambda: b"Psomething\n.",
    "extension": lambda: b"\x82\x01.",
    "attribute": lambda: b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    "dotted": lambda: b"\x80\x04\x8c\x05numpy\x8c\x18random.RandomState.__new__\x93.",
    "stand-in as target": lambda: b"cnumpy\ndtype\n}(Vreal\nVx\nub.",
    "stand-in as function": lambda: b"cnumpy\ndtype\n(Vf4\ntR(Vx\ntR.",
}


def hostile_cases() -> list[Any]:
    wrappings = {"plain": bytes, "gzip": gzip.compress, "bz2": bz2.compress}
    return [pytest.param(make, wrap, id=f"{name}-{how}") for name, make in HOSTILE.items() for how, wrap in wrappings.items()]


@pytest.mark.parametrize("make, wrap", hostile_cases())
def test_hostile_kmeans_are_refused(tmp_path: Path, make: Callable[[], bytes], wrap: Callable[[bytes], bytes]) -> None:
    """A k-means file that runs a command when it is read, as joblib.load would let it."""
    CALLED.clear()
    (tmp_path / "km.bin").write_bytes(wrap(make()))
    with pytest.raises(ValueError, match=r"km\.bin: not a"):
        read_cluster_centers(tmp_path / "km.bin")
    assert not CALLED


def test_the_hostile_files_would_run() -> None:
    """A test of refusals that passes because its files do nothing."""
    CALLED.clear()
    pickle.loads(HOSTILE["reduce"]())
    pickle.loads(HOSTILE["setstate"]())
    assert CALLED == ["called with ('by reduce',)", "called with ('by setstate',)"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("compress", [0, 3])
def test_truncated_kmeans(kmeans: Any, tmp_path: Path, share: float, compress: int) -> None:
    """Fewer centres than were fitted, from a copy that was interrupted."""
    joblib.dump(kmeans, tmp_path / "whole.bin", compress=compress)
    data = (tmp_path / "whole.bin").read_bytes()
    (tmp_path / "km.bin").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"km\.bin: not a file of joblib or pickle, or a damaged one"):
        read_cluster_centers(tmp_path / "km.bin")


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda kmeans: MiniBatchKMeans(3), "it has no cluster_centers_"),
        (lambda kmeans: with_centres(kmeans, np.full((3, 4), np.nan, np.float32)), "NaN"),
        (lambda kmeans: with_centres(kmeans, np.ones(4, np.float32)), "it has no cluster_centers_"),
        (lambda kmeans: with_centres(kmeans, np.ones((3, 4), np.int64)), "it has no cluster_centers_"),
        (lambda kmeans: with_centres(kmeans, np.array([[object()]])), "NumpyArrayWrapper|damaged|could run code"),
        (lambda kmeans: [1, 2], "it holds a list"),
        (lambda kmeans: np.ones((3, 4)), "it holds a ndarray"),
    ],
)
def test_kmeans_that_cannot_be_used(kmeans: Any, tmp_path: Path, model: Any, message: str) -> None:
    """A model that was never fitted, or another object than a model."""
    joblib.dump(model(kmeans), tmp_path / "km.bin")
    with pytest.raises(ValueError, match=message):
        read_cluster_centers(tmp_path / "km.bin")
