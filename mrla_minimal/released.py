"""Published weights for `imagenet_resnet`: names of torchvision and of the MRLA release turned into ours.

    model = imagenet_resnet(50, layer_attention="mrla-light-released")
    model.load_state_dict(rename_weights(torch.load("resnet50_mrlal.pth", weights_only=True)))

    published net                                   the same net is imagenet_resnet(depth, ...) with
    torchvision's resnet50, resnet101               no argument
    the release's resnet50_se, resnet50_eca         channel_attention="se", "eca"
    its resnet50_mrlal, resnet101_mrlal (light)     layer_attention="mrla-light-released"
    its resnet50_mrlab, resnet101_mrlab (base)      layer_attention="mrla-base", stem="deep"
    its resnet50_dw (depthwise, v alone)            layer_attention="depthwise"

The release's resnet50_la_eq4 and its base with a 7x7 stem can be renamed too, but compute something else
than any net here: Eq. 4's splits the heads differently and adds neither X^t nor a ReLU, that base has no
ReLU after its BN. To start a net with an attention from plain weights, load them with strict=False.

Sources: torchvision, models/resnet.py; https://github.com/joyfang1106/MRLA, resnet/models.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# In the order in which they are tried. A published name matches as a whole; what is left open stays as it is.
_OUTSIDE_BLOCKS = [
    (r"conv1\.weight", "stem.0.weight"),
    (r"conv1\.(\d)\.(.+)", r"stem.\1.\2"),                              # the deep stem: 0, 1, 3, 4 and 6
    (r"fc\.(.+)", r"classifier.\1"),
]
_BLOCK = re.compile(r"(?:layer([1-4])|stages\.([0-3]))\.(\d+)\.(.+)")        # base calls its stages 0 to 3
_INSIDE_BLOCKS = [
    (r"conv([123])\.(.+)", r"residual.conv\1.\2"),
    (r"bn([123])\.(.+)", r"residual.norm\1.\2"),
    (r"downsample\.0\.(.+)", r"shortcut.conv.\1"),
    (r"downsample\.1\.(.+)", r"shortcut.norm.\1"),
    (r"se\.fc\.0\.(.+)", r"channel_attention.squeeze.\1"),
    (r"se\.fc\.2\.(.+)", r"channel_attention.excite.\1"),
    (r"eca\.conv\.(.+)", r"channel_attention.convolution.\1"),
    (r"(?:mrla\.mrla|la)\.Wq\.(.+)", r"layer_attention.query.\1"),
    (r"(?:mrla\.mrla|la)\.Wk\.(.+)", r"layer_attention.key.\1"),
    (r"(?:mrla\.mrla\.Wv|la\.Wv|dwconv)\.(.+)", r"layer_attention.value.\1"),
    (r"mrla\.lambda_t", "layer_attention.lambda_o"),
    (r"bn_(?:mrla|la|dw)\.(.+)", r"attention_norm.\1"),
]


def rename_weights(state: Mapping) -> dict[str, Tensor]:
    """A published state dict -> one that `imagenet_resnet(...).load_state_dict` takes.

    `state` maps the published names to tensors; a training checkpoint that holds it as its "state_dict"
    will do, and so will names that begin with "module.", as DataParallel writes them. The tensors are the
    given ones, but for lambda, whose (channels, 1, 1) become (channels,).

    Raises ValueError naming the first name that none of the published nets has or that says the same as
    another, or if `state` is no mapping of texts.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be a state dict, names and their tensors, not a {type(state).__name__}")
    if isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    for name in state:
        if not isinstance(name, str):
            raise ValueError(f"the names in state must be texts, not {name!r}")
    names = {name: name.removeprefix("module.") for name in state}
    deep = "conv1.6.weight" in names.values()       # the stem's last BN stands apart from its convolutions
    renamed = {}
    for name, tensor in state.items():
        ours = _renamed(names[name], last_norm_of_stem="stem.7" if deep else "stem.1")
        if ours in renamed:
            raise ValueError(f"{name!r} says the same as a name before it: both become {ours!r}")
        renamed[ours] = tensor.flatten() if ours.endswith("lambda_o") else tensor
    return renamed


def _renamed(name: str, last_norm_of_stem: str) -> str:
    inside = _BLOCK.fullmatch(name)
    if inside is None:
        rules, start, rest = [*_OUTSIDE_BLOCKS, (r"bn1\.(.+)", rf"{last_norm_of_stem}.\1")], "", name
    else:
        stage = int(inside[1]) - 1 if inside[1] else int(inside[2])
        rules, start, rest = _INSIDE_BLOCKS, f"stages.{stage}.{inside[3]}.", inside[4]
    for published, ours in rules:
        found = re.fullmatch(published, rest)
        if found:
            return start + found.expand(ours)
    raise ValueError(f"{name!r} is a weight neither of torchvision's ResNet-50 and ResNet-101 "
                     "nor of the MRLA release's nets")
