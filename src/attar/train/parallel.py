"""What learns, on several ranks: DDP keeps a whole copy on each, FSDP2 a share of every tensor.

Both synchronise gradients only when the learner is called through its `forward`. Under FSDP2 any other way fails by
itself (sharded tensors do not mix with plain ones); under DDP the loop compares the ranks' gradients after each step.
FSDP1 is not offered: it cannot run a module twice in one step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Literal

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from attar.errors import ConfigError
from attar.models import Backbone
from attar.utils.distributed import world_size

Engine = Literal["ddp", "fsdp2"]
_REPEATED = ("blocks", "stages", "layers", "layer", "resblocks")  # timm, transformers, open_clip


def synchronise_statistics(learner: nn.Module, device: torch.device) -> None:
    """Let batch norms see the batches of all ranks. To be done before averages and optimizers are made.

    Raises:
        ConfigError: On the CPU, where torch has no synchronised batch norm.
    """
    if world_size() == 1 or not any(isinstance(module, _BatchNorm) for module in learner.modules()):
        return
    if device.type != "cuda":
        raise ConfigError(
            f"the student has batch norms, whose statistics must span all {world_size()} ranks, and torch can do that"
            " on CUDA devices only. Start one process, or choose a student without batch norms."
        )
    convert_sync_batchnorm(learner)


def distribute(learner: nn.Module, *, engine: Engine, device: torch.device) -> nn.Module:
    """The module to call in place of the learner: itself on one rank or sharded, or DDP around it.

    Args:
        learner: Equal on all ranks; under FSDP2 its parameters become shares, so optimizers come after.
        engine: DDP or FSDP2.
        device: This rank's.
    """
    if world_size() == 1:
        return learner
    if engine == "fsdp2":
        shard(learner, device)
        return learner
    return DistributedDataParallel(
        learner,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=_has_idle_parameters(learner),
        gradient_as_bucket_view=True,
    )


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a module over all ranks, in place: each block of its backbones gathers and frees its weights by itself."""
    mesh = _mesh(device)
    for block in repeated_parts(module, _REPEATED):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def repeated_parts(module: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """Of each backbone in a module the parts of the first list of such a name, however deep it lies.

    A transformer's blocks, a conv net's stages.
    """
    found: list[nn.Module] = []
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        lists = (
            part
            for name, part in backbone.model.named_modules()
            if name.rpartition(".")[2] in names and isinstance(part, nn.ModuleList | nn.Sequential)
        )
        found.extend(next(lists, ()))
    return found


def without_sync(learner: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """Micro-batches before the last keep their gradients to themselves."""
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(last)
    elif isinstance(learner, DistributedDataParallel) and not last:
        return learner.no_sync()
    return contextlib.nullcontext()


def whole(value: Tensor) -> Tensor:
    """The full tensor of a share, gathered from all ranks (a collective operation); any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_like(value: Tensor, owner: Tensor) -> Tensor:
    """This rank's share of a full tensor that every rank holds, cut as `owner` is; the tensor itself for a plain one.

    On the owner's device in any case.
    """
    value = value.to(owner.device)
    if isinstance(owner, DTensor):
        return distribute_tensor(value, owner.device_mesh, owner.placements, src_data_rank=None)
    return value


def is_sharded(module: nn.Module) -> bool:
    """Whether a module is sharded, be its weights gathered at the moment or not."""
    return isinstance(module, FSDPModule)


def _mesh(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (world_size(),))


def _has_idle_parameters(learner: nn.Module) -> bool:
    """Whether some parameter of a backbone takes no part in its class token, or none in its patch tokens.

    Such as a timm head's own layers, or the pooling of SigLIP for a method that looks at patches only.
    """
    for backbone in (part for part in learner.modules() if isinstance(part, Backbone)):
        mean = backbone.mean
        image = torch.full((1, 3, backbone.img_size, backbone.img_size), 0.5, device=mean.device, dtype=mean.dtype)
        was_training = backbone.training
        tokens = backbone.eval()(image)
        backbone.train(was_training)
        parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        for value in (tokens.cls, tokens.patch):
            found = torch.autograd.grad(value.sum(), parameters, allow_unused=True, retain_graph=True)
            if any(gradient is None for gradient in found):
                return True
    return False
