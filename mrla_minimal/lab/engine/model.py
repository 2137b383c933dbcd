"""From a configuration to a model, its optimiser and its learning rates."""

import math
from pathlib import Path

import torch
from torch import nn

from mrla_minimal.detector import Detector
from mrla_minimal.lab.data.corridors import ROOMS, TILE
from mrla_minimal.lab.data.scenes import CROPS, MASKED
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.variants import FURTHER_ATTENTIONS
from mrla_minimal.lab.own_files import where
from mrla_minimal.lab.plugins import OwnAttention
from mrla_minimal.lab.positive_controls import Corridor, wipe_streams
from mrla_minimal.resnet import cifar_resnet
from mrla_minimal.vit import cifar_vit

MOMENTUM = 0.9


def build_model(config: TrainConfig, num_classes: int, run_dir: Path | None = None,
                in_channels: int = 3) -> nn.Module:
    """The model of a configuration, started from its seed.

    Variants of one seed share their host's initial weights. An attention of one's own is taken from its
    file, or from the copy in `run_dir`. Raises ValueError naming the argument that does not fit, what was
    given and what is allowed.
    """
    name = config.layer_attention
    own = OwnAttention.parse(name)
    attention = own.load(run_dir) if own else FURTHER_ATTENTIONS.get(name, name)
    torch.manual_seed(config.seed)
    if config.model == "corridor":
        return Corridor(config.width, attention, num_classes, config.head_dim)
    if config.model == "vit":
        return cifar_vit(config.depth, dim=config.dim, heads=config.heads, patch=config.patch,
                         image_size=config.resolution, num_classes=num_classes, layer_attention=attention,
                         head_dim=config.head_dim, reset_every=config.reset_every, read=config.read,
                         drop_path=config.drop_path, in_channels=in_channels)
    host = {"block": config.block, "num_classes": num_classes, "layer_attention": attention,
            "channel_attention": config.channel_attention, "head_dim": config.head_dim,
            "shortcut": config.shortcut, "width": config.width, "drop_path": config.drop_path}
    if config.detects:
        return Detector(config.depth, masks=config.dataset in MASKED, **host)
    model = cifar_resnet(config.depth, in_channels=in_channels, **host)
    return wipe_streams(model, config.wipe) if config.wipe else model


def image_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the model of a configuration is given."""
    if config.model == "corridor":
        return 3, TILE, TILE * (ROOMS + 1)
    if config.detects:
        return 3, CROPS[config.dataset], CROPS[config.dataset]
    return 3, config.resolution, config.resolution


def try_model(config: TrainConfig, run_dir: Path | None = None) -> None:
    """Build the model once, and let an attention of one's own see an image.

    What cannot work is told at once, as a ValueError.
    """
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = build_model(config, 10, run_dir).eval().to(memory_format=memory_format)
    if OwnAttention.parse(config.layer_attention):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                model(torch.zeros(2, *image_shape(config)).to(memory_format=memory_format))
        except Exception as error:
            raise ValueError(f"layer_attention {config.layer_attention}: "
                             "output, memory = attention(x, memory) "
                             f"does not work in this net: {where(error)}; mrla check tells more") from error


def build_optimizer(config: TrainConfig, model: nn.Module,
                    fused: bool | None = None) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW.

    Biases, norms and lambda_o (everything with one dimension), and a transformer's class token and
    positions, decay only with `decay_all`. A fused one takes a gradient scaler's verdict on the device.
    """
    named = getattr(model, "spared_from_decay", ())
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        decays = config.decay_all or (parameter.dim() > 1 and name not in named)
        (decayed if decays else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay},
              {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    sgd = torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True, fused=fused)
    if fused:       # torch makes the momentum without values, and a first step that is left out sets none
        for parameter in model.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate_at(config: TrainConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of one step, counted from 0.

    A linear warm-up to the peak, then a half cosine to zero, or a tenth at 1/2 and at 3/4 of the run.
    """
    warmup_steps = min(config.warmup_epochs * steps_per_epoch, total_steps)
    if step < warmup_steps:
        return config.learning_rate * min(1.0, (step + 1) / warmup_steps)
    if config.schedule == "steps":
        return config.learning_rate * 0.1 ** sum(step >= share * total_steps for share in (0.5, 0.75))
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
