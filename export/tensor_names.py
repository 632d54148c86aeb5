"""Names of tensors: those of older releases of upstream, and those that training alone reads.

In: the state dict of a SoundStream or a MuLaN, of any release. Out: the same tensors under the names of audiolm-pytorch 2.4.0 and
musiclm-pytorch 0.2.8, without those that no output depends on. What a release computed from its tensors is in `versions`.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from .errors import ExportError

# Parts of a name that mark a module or a number of training: losses and what they measure with, counters of an average of weights.
_TRAINING = re.compile(
    r"(^|[._])(loss(es)?|criterion|discr|discriminators?|metrics?|accuracy|optim|optimizer)([._]|$)"
    r"|(^|[._])(initted|steps?|epochs?|iterations?|num_updates|n_averaged)([._]|$)"
    r"|^(temperatures?|logit_scale|logit_bias|contrast|multi_layer_contrastive_learning|(audio|text)_layers_indices)(\.|$)"
    r"|^(mel_spec_transforms|(en|de)coder_film|zero)(\.|$)"  # SoundStream's; its FiLM serves denoising, which a bundle does not do
)
SOUNDSTREAM_PARTS = ("encoder.", "encoder_attn.", "rq.", "decoder.", "decoder_attn.")
_MULAN = ("audio.", "text.", "audio_to_latents.", "text_to_latents.")
_SOUNDSTREAM_NAMES = (
    (r"^rq\.layers\.", "rq.rvqs.0.layers."),  # before 0.30 there were no groups
    (r"^((?:en|de)coder_attn)\.(\d+)\.attn\.", r"\1.layers.\2.0."),  # before 0.21 each layer was a module of its own
    (r"^((?:en|de)coder_attn)\.(\d+)\.ff\.", r"\1.layers.\2.1."),
)


def serves_training(name: str) -> bool:
    """Return whether a tensor outside of the parts that compute is one of training: no output depends on it, so none need be read."""
    return _TRAINING.search(name) is not None


def refuse_unknown(where: str, names: Sequence[str], advice: str = "") -> None:
    """Raise ExportError if there are `names`, of tensors that nobody knows. where: their file or part; advice: the last sentence."""
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ExportError(f"{where}: {shown}: these tensors belong to a variant that the export does not cover.{advice}")


def soundstream_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that encode and decode, under the names of audiolm-pytorch 2.4.0.

    Raises ExportError for tensors of which neither is known.
    """
    tensors = {}
    for name, tensor in _parts("codec", state, SOUNDSTREAM_PARTS).items():
        for pattern, replacement in _SOUNDSTREAM_NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors


def mulan_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the two towers, under the names of musiclm-pytorch 0.2.8.

    Before 0.1 its layer norms had a `gamma` and, never trained, a `beta` of zeros. Raises ExportError for tensors of which it is not known
    what they do.
    """
    tensors = {}
    for name, tensor in _parts("mulan", state, _MULAN).items():
        if name.endswith(".beta") and not tensor.any():
            continue
        tensors[re.sub(r"\.gamma$", ".learned_gamma", name)] = tensor
    return tensors


def _parts(where: str, state: Mapping[str, Tensor], parts: tuple[str, ...]) -> dict[str, Tensor]:
    unknown = [name for name in state if not name.startswith(parts) and not serves_training(name)]
    refuse_unknown(where, unknown, " If training alone reads them, save the file without them.")
    return {name: tensor for name, tensor in state.items() if name.startswith(parts)}
