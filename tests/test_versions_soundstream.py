"""SoundStream files of every release of audiolm-pytorch: encoded and decoded as that release did, or refused by its version.

The golden numbers are those of the releases themselves, installed with the local-attention and vector-quantize-pytorch of their time,
with the weights of `support.drawn`. fp32: 1e-5 of the peak for waves; codes are exact.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.drawn import drawn, normal
from torch import Tensor

from musiclm_deploy.export.checkpoint import kinds_in, read_checkpoint
from musiclm_deploy.export.codec import build_codec, infer_codec
from musiclm_deploy.export.errors import ExportError
from musiclm_deploy.export.soundstream import build_decoder, build_encoder, infer_soundstream
from musiclm_deploy.export.upstream_codec import upstream_codec
from musiclm_deploy.export.versions import numbers
from musiclm_deploy.model.soundstream import SoundStreamConfig, SoundStreamDecoder
from musiclm_deploy.model.soundstream_encoder import SoundStreamEncoder

CONFIG = SoundStreamConfig(
    channels=4,
    strides=(2, 3),
    channel_mults=(2, 4),
    codebook_dim=16,
    codebook_size=11,
    rq_num_quantizers=3,
    rq_groups=1,
    enc_cycle_dilations=(1, 3, 9),
    dec_cycle_dilations=(1, 3, 9),
    pad_mode="reflect",
    squeeze_excite=False,
    use_local_attn=True,
    attn_heads=2,
    attn_dim_head=8,
    attn_window_size=8,
)
# Release: the codes of normal("wave", 1, 120), frame by frame, and every 15th sample of what it decodes from other codes.
GOLDEN = {
    "0.18.1": (
        "469407a8526470670478670608606a8a114026a066056064060060010a6a",
        [-1.028, 6.1068, 65.2082, -26.4273, -46.3583, -84.7872, -4.8555, -76.1054],
    ),
    "0.20.0": (
        "469407a8526470670478670608606a8a114026a066056064060060010a6a",
        [-1.028, 6.1068, 65.2082, -26.4272, -46.3583, -84.7872, -4.8555, -76.1055],
    ),
    "0.26.2": (
        "431437aa12647867a475470608676a8a114006a06605606606a060010a6a",
        [-1.392, 21.0771, 108.9102, 41.5775, 39.3408, -84.8659, 112.2675, -152.2071],
    ),
    "0.26.3": (
        "66a04a06054364a06004aa2a24a06a06a06004aa7a03a06a06a16006306a",
        [71.6818, -126.4245, 176.5882, -168.4067, 58.9593, -127.9297, 122.7668, -167.005],
    ),
    "0.28.2": (
        "66a04a06054364a06004aa2a24a06a06a06004aa7a03a06a06a16006306a",
        [71.6818, -126.4245, 176.5882, -168.4067, 58.9593, -127.9297, 122.7668, -167.005],
    ),
    "1.6.2": (
        "6493498493497799747499896a93499a934939934994a3496a96a9349979",
        [49.1342, -173.8832, 53.0118, -141.2191, -49.6474, -124.6864, 47.1188, -144.5421],
    ),
    "1.6.3": (
        "949349a493497799747449896a93499a934939934994a3496a96a9349979",
        [59.5487, -180.827, 9.705, -108.4008, -27.5279, -140.7193, 36.8262, -119.7646],
    ),
}
GIVEN = {"attn_window_size": 8}  # what a file without arguments does not tell
CODES = torch.from_numpy(np.random.RandomState(0).randint(0, 11, (1, 20, 3)))


def state_of(release: str) -> dict[str, Tensor]:
    """Return the tensors that a SoundStream of this release saves, under its names, with some of those that training alone reads."""
    named = {**SoundStreamDecoder(CONFIG).state_dict(), **SoundStreamEncoder(CONFIG).state_dict()}
    for quantizer in range(3):
        book = f"rq.rvqs.0.layers.{quantizer}._codebook."
        named |= {book + "embed": torch.zeros(1, 11, 16), book + "embed_avg": torch.zeros(1, 11, 16)}
        named |= {book + "initted": torch.zeros(1), book + "cluster_size": torch.zeros(1, 11)}
    if numbers(release) >= numbers("0.29.0"):
        named |= {f"{side}_film.to_cond.weight": torch.zeros(32, 2) for side in ("encoder", "decoder")}
    named |= {"discriminators.0.init_conv.weight": torch.zeros(2, 1, 7), "stft_discriminator.init_conv.bias": torch.zeros(3, 2)}
    named |= {"mel_spec_transforms.0.mel_scale.fb": torch.zeros(9, 4)}
    state = {}
    for name, tensor in named.items():
        if numbers(release) < numbers("1.6.3") and ".to_v_gate." in name:
            continue
        if numbers(release) < numbers("0.30.0"):
            name = name.replace("rq.rvqs.0.", "rq.")
        if numbers(release) < numbers("0.21.0"):
            name = re.sub(r"_attn\.layers\.(\d+)\.0\.", r"_attn.\1.attn.", name)
            name = re.sub(r"_attn\.layers\.(\d+)\.1\.", r"_attn.\1.ff.", name)
        state[name] = tensor
    return drawn(state)


def assert_wave(wave: Tensor, samples: list[float]) -> None:
    np.testing.assert_allclose(wave[0, ::15], samples, rtol=0, atol=1e-5 * max(map(abs, samples)) + 1e-4)  # printed to 1e-4


@pytest.mark.parametrize("release", GOLDEN)
@torch.no_grad()
def test_computes_as_its_release(release: str) -> None:
    """Zeros taken for reflections, a gate that was not there, a position embedding or codebook under a name of its time."""
    state, (codes, samples) = state_of(release), GOLDEN[release]
    assert kinds_in("codec.pt", state) == ["codec"]
    settings = infer_soundstream(state, None, release, GIVEN)
    assert "".join("0123456789a"[code] for code in build_encoder(settings, state)(normal("wave", 1, 120)).flatten()) == codes  # type: ignore[misc]
    assert_wave(build_decoder(settings, state)(CODES), samples)


@pytest.mark.parametrize("release", ["0.20.0", "0.26.2", "1.6.2"])
@torch.no_grad()
def test_is_compared_with_its_release(release: str) -> None:
    """A right export of an old file that the validation refuses, since it compares with audiolm-pytorch 2.4.0 as that is."""
    state, wave = state_of(release), normal("wave", 1, 120)
    settings = infer_soundstream(state, None, release, GIVEN)
    upstream, encoder = upstream_codec(settings, state), build_encoder(settings, state)
    assert encoder is not None
    assert_wave(upstream.decode(CODES), GOLDEN[release][1])
    assert torch.equal(encoder.search(upstream.latents(wave)), encoder(wave))


def test_a_package_of_its_trainer(tmp_path: Path) -> None:
    """The version that stands in a file overlooked, or arguments taken for missing that its release did not have yet."""
    arguments = {"channels": 4, "strides": (2, 3), "attn_window_size": 8, "target_sample_hz": 22050}
    package = {"model": state_of("0.26.2"), "config": pickle.dumps(arguments), "version": "0.26.2", "optim": {"state": {}}}
    torch.save(package, tmp_path / "soundstream.pt")
    checkpoint = read_checkpoint(tmp_path / "soundstream.pt", "codec")
    settings = infer_codec(checkpoint, None, {})
    found = {name: (setting.value, setting.source) for name, setting in settings.items()}
    assert found["pad_mode"] == ("constant", "as version 0.26.2 does")
    assert found["pads_whole_kernels"] == (True, "as version 0.26.2 does")
    assert found["target_sample_hz"] == (22050, "saved config")
    assert found["attn_heads"] == (2, "decoder_attn.layers.0.0.to_out [..., 16] over q_scale [8]")
    with torch.no_grad():
        assert_wave(build_codec(settings, checkpoint.state)[0](CODES), GOLDEN["0.26.2"][1])


@pytest.mark.parametrize("version", ["0.15.4", "0.17.1", "0.18.0"])
def test_older_releases_are_refused_by_their_version(version: str) -> None:
    """A file from before all that runs, called damaged or another kind of file."""
    state = state_of("0.18.1")
    assert kinds_in("codec.pt", state) == ["codec"]
    expected = rf"saved by audiolm-pytorch {version}, whose SoundStream has learned moving averages.* version 0\.18\.1 and later"
    with pytest.raises(ExportError, match=expected):
        infer_soundstream(state, None, version, GIVEN)


def test_without_a_version() -> None:
    """A release guessed where two of them make different waves of the same tensors; or asked for where all make one."""
    for release in ("0.20.0", "0.28.2"):
        with pytest.raises(ExportError, match=r'before 0\.29\.0, .*no version stands in the file.*\{"codec": \{"version": "0\.28\.2"\}\}'):
            infer_soundstream(state_of(release), None, None, GIVEN)
    settings = infer_soundstream(state_of("0.26.2"), None, None, GIVEN | {"version": "0.26.2"})
    assert settings["pad_mode"] == "constant" and dict(settings.items())["version"].source == "override"
    for release in ("1.6.2", "1.6.3"):
        with torch.no_grad():
            assert_wave(
                build_decoder(infer_soundstream(state_of(release), None, None, GIVEN), state_of(release))(CODES), GOLDEN[release][1]
            )


def test_a_version_that_the_tensors_belie() -> None:
    """The number of somebody's own trainer taken for one of audiolm-pytorch, and the padding of a release that never had these tensors."""
    for version in ("0.1.0", "0.20.0", "0.28.2"):
        expected = (
            rf'of audiolm-pytorch {version}, but its tensors have the names of 0\.29\.0 or later.*{{"codec": {{"version": "2\.4\.0"}}}}'
        )
        with pytest.raises(ExportError, match=expected):
            infer_soundstream(state_of("1.6.2"), None, version, GIVEN)
    assert infer_soundstream(state_of("1.6.2"), None, "0.1.0", GIVEN | {"version": "1.6.2"})["pad_mode"] == "reflect"
    for version in ("0.30.0", "2.0.4"):
        with pytest.raises(ExportError, match=rf"audiolm-pytorch {version}, but its tensors have the names of releases before 0\.30\.0"):
            infer_soundstream(state_of("0.26.2"), None, version, GIVEN)
    assert infer_soundstream(state_of("0.26.2"), None, "2.0.4", GIVEN | {"version": "0.26.2"})["pad_mode"] == "constant"


def test_a_newer_release_is_said() -> None:
    """A release that nobody here has seen, taken for a known one in silence."""
    settings = infer_soundstream(state_of("1.6.3"), None, "9.0.0", GIVEN)
    assert settings.warnings == [
        "saved by audiolm-pytorch 9.0.0, which this export does not know. It is run as 2.4.0, the newest release known."
    ]
    with pytest.raises(ExportError, match="the version 'yesterday' is not a version number"):
        infer_soundstream(state_of("1.6.3"), None, "yesterday", GIVEN)


@pytest.mark.parametrize("name", ["decoder_norm.weight", "encoder.9.0.fn.0.conv.weight", "decoder.9.weight", "rq_proj.weight"])
def test_a_tensor_that_may_change_the_wave_is_refused(name: str) -> None:
    """A layer between the ones that are known, left out without a word."""
    state: dict[str, Any] = state_of("1.6.3") | {name: torch.zeros(3)}
    with pytest.raises(ExportError, match=re.escape(name)):
        settings = infer_soundstream(state, None, "1.6.3", GIVEN)
        build_decoder(settings, state)
        build_encoder(settings, state)


@pytest.mark.parametrize(
    "name",
    [
        "initted",
        "step",
        "loss_weights",
        "perceptual_loss.layers.0.weight",
        "discriminator.mpd.0.weight",
        "train_metrics.recon.total",
        "zero",
    ],
)
def test_a_tensor_of_training_is_no_reason_to_refuse(name: str) -> None:
    """Losses, discriminators and counters beside the codec, even where they hold NaN: no wave depends on them."""
    state = state_of("1.6.3") | {name: torch.full((2,), torch.nan)}
    with torch.no_grad():
        assert_wave(build_decoder(infer_soundstream(state, None, "1.6.3", GIVEN), state)(CODES), GOLDEN["1.6.3"][1])
