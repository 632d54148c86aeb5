"""EnCodec at 24 kHz from a checkpoint, of the encodec package or of transformers.

In: its tensors and, of transformers, its config.json; the number of quantizers that the token transformers use; the user's overrides.
Out: `Settings`, decoder and encoder as PyTorch modules. The 48 kHz model is another one, and refused.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..model.encodec import EncodecConfig, EncodecDecoder, EncodecEncoder, codebooks
from .checkpoint import check_finite, check_size, shape_of
from .errors import ExportError
from .settings import Settings

_SAMPLE_HZ = 24000
# What the tensors do not tell, but transformers' config.json does: name -> the one value that is covered.
_FIXED = {
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "norm_type": "weight_norm",
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "trim_right_ratio": 1.0,
}
_NAMES = (  # of the encodec package -> of transformers
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),  # weight norm as torch keeps it since 2.0
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names, weight norm folded: `w = g * v / |v|`, the norm over all but the first axis."""
    named = {}
    for name, tensor in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    for name in [name for name in named if name.endswith(".weight_v")]:
        direction, stem = named.pop(name).float(), name.removesuffix("_v")
        gain, expected = _tensor(named, f"{stem}_g").float(), [len(direction) if direction.ndim else 0, 1, 1]
        if direction.ndim != 3 or not direction.numel() or list(gain.shape) != expected:
            got = f"{list(direction.shape)} and {list(gain.shape)}"
            raise ExportError(f"codec: the weight norm of {stem!r} has the shapes {got}, expected [out, in, kernel] and [out, 1, 1].")
        del named[f"{stem}_g"]
        named[stem] = gain * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1)
    return named


def infer_encodec(state: Mapping[str, Tensor], config: Mapping[str, Any], quantizers: int | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings of the codec. quantizers: of coarse and fine transformer together, if known; the codec may have more, its first serve."""
    for name, covered in _FIXED.items():
        if config.get(name, covered) != covered:
            raise ExportError(f"codec: this EnCodec was made with {name} = {config[name]!r}; covered is the 24 kHz model, {covered!r}.")
    if any(".norm." in name for name in state):
        raise ExportError("codec: this EnCodec has group norms, as the 48 kHz model; covered is the 24 kHz model.")
    state = plain_state(state)
    settings = Settings("codec", overrides)
    first = _shape(state, "encoder.layers.0.conv.weight", 3)
    if first[1] != 1:
        raise ExportError(f"codec: this EnCodec takes {first[1]} channels; covered is the 24 kHz model, which takes 1.")
    last = max(int(match[1]) for name in state if (match := re.match(r"encoder\.layers\.(\d{1,3})\.", name)))
    downs = range(3, last - 2, 3)  # a residual unit, an activation and a convolution per stride; then LSTM, activation, convolution
    strides = tuple(_shape(state, f"encoder.layers.{index}.conv.weight", 3)[2] // 2 for index in downs)
    book = _shape(state, "quantizer.layers.0.codebook.embed", 2)
    found = len({name.split(".")[2] for name in state if name.startswith("quantizer.layers.")})
    wanted = found if quantizers is None else quantizers
    used = f"the first of {found} quantizer.layers, as many as the coarse and fine transformers have"
    settings.infer("n_filters", first[0], f"encoder.layers.0.conv.weight {list(first)}")
    settings.infer("strides", strides, "kernels of the encoder's downsampling, twice the stride")
    settings.infer("codebook_dim", book[1], f"quantizer.layers.0.codebook.embed {list(book)}")
    settings.infer("codebook_size", book[0], f"quantizer.layers.0.codebook.embed {list(book)}")
    settings.infer("rq_num_quantizers", min(found, wanted), used if wanted < found else "number of quantizer.layers")
    settings.infer("rq_groups", 1, "EnCodec has no groups")
    if "sampling_rate" in config:
        rate = settings.infer("target_sample_hz", config["sampling_rate"], "config.json")
    else:
        rate = settings.assume("target_sample_hz", _SAMPLE_HZ, "rate of the 24 kHz model")
    if not isinstance(rate, int) or rate < 1:
        raise ExportError(f"codec: target_sample_hz is {rate!r}, expected a positive integer.")
    return settings.finish()


def build_encodec(settings: Settings, state: Mapping[str, Tensor]) -> tuple[EncodecDecoder, EncodecEncoder]:
    """Decoder and encoder with the weights of `state`, in evaluation mode."""
    values = settings.values()
    config = EncodecConfig(**{name: value for name, value in values.items() if name != "target_sample_hz"})
    state = plain_state(state)
    for name in (f"quantizer.layers.{quantizer}.codebook.embed" for quantizer in range(config.rq_num_quantizers)):
        _tensor(state, name)
    check_size("codec", state, lambda: nn.ModuleList((EncodecDecoder(config), EncodecEncoder(config))))
    decoder, encoder = EncodecDecoder(config), EncodecEncoder(config)
    try:
        decoder.load(state)
        encoder.load(state)
    except RuntimeError as error:  # torch lists every missing, unexpected and misshapen tensor
        raise ExportError(f"codec: the tensors are not those of the 24 kHz EnCodec with these settings. {error}") from error
    check_finite("codec", {**decoder.state_dict(), **encoder.state_dict(), "codebooks": codebooks(state, config)})
    return decoder.eval(), encoder.eval()


def _tensor(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ExportError(f"codec: the tensor {name!r} is missing. Is this the 24 kHz EnCodec, saved whole by encodec or transformers?")
    return state[name]


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    return shape_of("codec", name, _tensor(state, name), dims)
