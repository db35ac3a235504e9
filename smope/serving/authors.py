"""The checkpoint that the authors' code writes for each task, class.pth, and our artefact.

That code saves the state of its whole model, one tensor for each expert
(github.com/Minhchuyentoancbn/SMoPE, learners/default.py and models/zoo.py):

    prompt.e_pk_{block}_{expert}_{head}  (1, D)   keys[head, expert] of the block's experts
    prompt.e_pv_{block}_{expert}_{head}  (1, D)   values[head, expert]
    last.weight, last.bias                        the classifier over all classes
    feat.*                                        the frozen ViT, by timm's names

Counts, flags and old keys are attributes there and in no file: they are zero in the artefact.
Evaluation with them gives what the authors' code gives after loading the file.

Letters: H heads, E experts a head, D head width.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smope.config.config import Config
from smope.errors import UserError
from smope.experts.bank import PrefixBank
from smope.methods.base import Method
from smope.methods.smope import SMoPE
from smope.run.artefact import Artefact, to_bytes
from smope.run.build import make_backbone, make_method
from smope.run.model_card import model_card
from smope.serving.weights_beside import STEM
from smope.storage.files import unwritten, write_atomically, write_together
from smope.storage.run_directory import RunDirectory
from smope.training.precision import full_precision
from smope.version import __version__

EXPERT = re.compile(r"prompt\.e_p([kv])_(\d+)_(\d+)_(\d+)")
BLOCKS = 6  # of the authors' code, the first ones
BACKBONE = "feat."
PARALLEL = "module."  # put before all names by torch's DataParallel


@dataclass(frozen=True)
class Checkpoint:
    """The content of a class.pth.

    Attributes:
        keys: (blocks, H, E, D).
        values: (blocks, H, E, D).
        classifier: weight and bias.
        backbone: By timm's names.
    """

    keys: Tensor
    values: Tensor
    classifier: tuple[Tensor, Tensor]
    backbone: dict[str, Tensor]


def read_authors(path: Path) -> Checkpoint:
    """Read a class.pth; no pickled code is run.

    Raises:
        UserError: It cannot be read, or is another file.
    """
    key = f"CLASS_PTH={path}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly any exception
        raise UserError(
            f"{key}: cannot be read as tensors alone ({type(error).__name__}); give the class.pth "
            "that the authors' code wrote"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{key}: holds no named tensors; give the class.pth of a task")
    state = {str(name).removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    experts = {match.groups(): state[name] for name in state if (match := EXPERT.fullmatch(name))}
    missing = [name for name in ("last.weight", "last.bias") if name not in state]
    missing += [] if experts else ["prompt.e_pk_0_0_0"]
    if missing:
        raise UserError(
            f"{key}: has no {', '.join(missing)}; give a class.pth of `--learner_name OnePrompt`"
        )
    return Checkpoint(
        _stacked(experts, "k", key),
        _stacked(experts, "v", key),
        (state["last.weight"], state["last.bias"]),
        {n.removeprefix(BACKBONE): t for n, t in state.items() if n.startswith(BACKBONE)},
    )


def _stacked(experts: Mapping[tuple[str, ...], Tensor], kind: str, key: str) -> Tensor:
    """The keys ("k") or values ("v") of all experts, (blocks, H, E, D)."""
    numbers = [tuple(map(int, name[1:])) for name in experts if name[0] == kind]
    blocks, count, heads = (max(column) + 1 for column in zip(*numbers, strict=True))
    try:
        rows = [
            experts[kind, str(block), str(expert), str(head)].reshape(-1)
            for block in range(blocks)
            for head in range(heads)
            for expert in range(count)
        ]
        return torch.stack(rows).view(blocks, heads, count, -1)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{key}: tensors of experts are missing or differ in size ({error})"
        ) from error


def import_authors(
    checkpoint: Checkpoint,
    config: Config,
    folder: Path,
    class_names: list[str] | None = None,
    tasks: int | None = None,
) -> Artefact:
    """Write model.safetensors, backbone.safetensors and a model card of a checkpoint.

    Args:
        checkpoint: The authors'.
        config: A configuration with the architecture and pixel statistics of the backbone, the
            method and the router; its weights are not read.
        folder: Where to write; made if it does not exist.
        class_names: In the order of learning, those learned so far; None: numbers.
        tasks: Tasks learned; None: all.

    Raises:
        UserError: The checkpoint does not fit the configuration.
    """
    from safetensors.torch import save

    weights = (folder / f"{STEM}.safetensors").absolute()
    with _named_errors(weights):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(weights, save({k: t.contiguous() for k, t in checkpoint.backbone.items()}))
    values = {**config.backbone, "weights": str(weights)}
    num_classes = len(checkpoint.classifier[1])
    total_tasks = config.stream.get("num_tasks") or 1
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = make_backbone(values)
            method = make_method(config.method, config.router, backbone, num_classes, total_tasks)
        _fill(*_plain(method.to(full_precision(config.trainer["precision"]))), checkpoint)
    except UserError:
        weights.unlink()
        raise
    names = class_names or [f"class {number}" for number in range(num_classes)]
    artefact = Artefact(
        backbone=values,
        identity=backbone.identity.as_dict(),
        method=config.method,
        router=config.router,
        num_classes=num_classes,
        total_tasks=total_tasks,
        class_names=names,
        tasks_done=tasks or total_tasks,
        image_size=backbone.image_size,
        eval_crop=float(config.stream["eval_crop"]),
        precision=config.trainer["precision"],
        seed=config.seed,
        config_hash=config.config_hash,
        smope_version=__version__,
        state=method.inference_state(),
    )
    directory = RunDirectory(folder)
    card = model_card(artefact).encode()
    try:
        with _named_errors(directory.model):
            write_together({directory.model: to_bytes(artefact), directory.model_card: card})
    except OSError:
        weights.unlink()
        raise
    return artefact


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What the operating system says about a file that cannot be written, with its name."""
    try:
        yield
    except OSError as error:
        raise unwritten(path, error, ", or name another file") from error


def _plain(method: Method) -> tuple[SMoPE, list[PrefixBank]]:
    """The method and its experts, if the authors' code has the same. UserError otherwise."""
    if type(method) is SMoPE:
        banks = [bank for bank in method.experts if type(bank) is PrefixBank]
        if len(banks) == len(method.experts):
            return method, banks
    raise UserError(
        f"method={type(method).__name__}: the authors' code has SMoPE with "
        "method.expert_space=head and method.placement=prefix alone; choose method=smope"
    )


@torch.no_grad()
def _fill(method: SMoPE, banks: list[PrefixBank], checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a method. UserError if they do not fit."""
    pairs = [*zip(banks, checkpoint.keys, checkpoint.values, strict=False)]
    ours = (len(banks), *banks[0].keys.shape)
    if tuple(checkpoint.keys.shape) != ours or checkpoint.values.shape != checkpoint.keys.shape:
        raise UserError(
            f"CLASS_PTH: its experts are {tuple(checkpoint.keys.shape)} (blocks, heads, experts, "
            f"width), those of the configuration {ours}; set backbone, method.blocks and "
            "method.num_experts to fit"
        )
    for bank, keys, values in pairs:
        bank.keys.copy_(keys)
        bank.values.copy_(values)
    weight, bias = checkpoint.classifier
    if weight.shape != method.classifier.weight.shape:
        raise UserError(
            f"CLASS_PTH: last.weight is {tuple(weight.shape)}, which no classifier fits"
        )
    method.classifier.weight.copy_(weight)
    method.classifier.bias.copy_(bias)


def authors_state(method: Method) -> dict[str, Tensor]:
    """The tensors of class.pth for a method; UserError if the authors' code has no such one."""
    method, banks = _plain(method)
    blocks = [
        i for i, block in enumerate(method.backbone.vit.blocks) if hasattr(block.attn, "bank")
    ]
    if blocks != list(range(BLOCKS)):
        raise UserError(
            f"method.blocks={blocks}: the authors' code has experts in the first {BLOCKS} "
            "blocks alone; such a model cannot be written for it"
        )
    state = {"last.weight": method.classifier.weight, "last.bias": method.classifier.bias}
    for block, bank in enumerate(banks):
        for kind, rows in (("k", bank.keys), ("v", bank.values)):
            for head, experts in enumerate(rows):
                for expert, row in enumerate(experts):
                    state[f"prompt.e_p{kind}_{block}_{expert}_{head}"] = row[None]
    for name, tensor in method.backbone.vit.state_dict().items():
        if ".bank." not in name and ".router." not in name:
            state[BACKBONE + name.replace(".attn.layer.", ".attn.")] = tensor
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def counts_decide(method: Method) -> bool:
    """Whether evaluation leaves out experts that were never used: the authors' file does not say
    which these are, so that its logits are others.
    """
    method, banks = _plain(method)
    excludes = getattr(method.routers[0], "exclude_unused_experts", False)
    return bool(excludes) and any(
        bool(((bank.counts == 0).any(-1) & (bank.counts > 0).any(-1)).any()) for bank in banks
    )


def write_authors(method: Method, path: Path) -> None:
    """Write a class.pth."""
    file = io.BytesIO()
    torch.save(authors_state(method), file)
    with _named_errors(path):
        write_atomically(path, file.getvalue())
