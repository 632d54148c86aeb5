"""A tiny HuBERT of transformers, and its weights as fairseq's checkpoints name them."""

import torch
from torch import Tensor

from musiclm_deploy.model.upstream import load_upstream

load_upstream()
from transformers import HubertConfig, HubertModel  # noqa: E402 (torchaudio, which it imports, loads only after load_upstream)

WIDTH, LAYERS, HEADS = 64, 4, 1  # heads of 64, as published models have, where a file does not tell


def tiny_hubert(large: bool) -> HubertModel:
    """Build a HuBERT with every variation of `large` models, or of `base` ones, and no weight at 0 or 1."""
    torch.manual_seed(large)
    config = HubertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=large,
        feat_extract_norm="layer" if large else "group",
        conv_bias=large,
    )
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


# transformers' names -> fairseq's, written from fairseq's modules: what the reader does, the other way round
TO_FAIRSEQ = [
    (".conv.parametrizations.weight.original0", ".0.weight_g"),
    (".conv.parametrizations.weight.original1", ".0.weight_v"),
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    ("encoder.pos_conv_embed", "encoder.pos_conv"),
    ("feature_projection.projection", "post_extract_proj"),
    ("feature_projection.layer_norm", "layer_norm"),
    ("masked_spec_embed", "mask_emb"),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
]


def fairseq_state(model: HubertModel, large: bool) -> dict[str, Tensor]:
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("feature_extractor."):
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1." if large else ".2.")
        elif name.startswith("encoder.layers.") and ".layer_norm." in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        for theirs, fairseqs in TO_FAIRSEQ:
            name = name.replace(theirs, fairseqs)
        state[name] = tensor
    return state | {
        "label_embs_concat": torch.ones(504, 256),
        "final_proj.weight": torch.ones(256, WIDTH),
        "final_proj.bias": torch.ones(256),
    }


CFG = {
    "_name": "hubert",
    "activation_fn": "gelu",
    "encoder_attention_heads": HEADS,
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
}
