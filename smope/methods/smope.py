"""SMoPE: one set of prompt experts for all tasks, of which each image uses a few (Le et al., ICLR
2026, arXiv 2509.24483).

The paper's symbols and the names here:
    N_p prompts a head          num_experts (E)
    K                           router.top_k
    p^K_j, p^V_j                bank.keys, bank.values
    ~s_j, the proxy score       Routing.scores
    adaptive noise epsilon      router.epsilon
    L_router, alpha_router      losses/router.py, router_loss_weight
    L_proto, alpha_proto        losses/prototype.py, prototype_loss_weight
    TAP                         training/alignment.py

Where the paper's formulas and the authors' code differ, the code is the default, since the
published numbers come from it. The paper's variant has a name among the arguments of SMoPE.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.collapse import no_effect
from smope.declare.placement import placement_obstacle
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range, Share
from smope.errors import UserError
from smope.experts.adapter import Adapters
from smope.experts.bank import ExpertBank, InputSpaceBank, LowRankBank, PrefixBank
from smope.experts.dropout import ExpertDropout
from smope.experts.inject import Placement, attach
from smope.experts.lora import LoRA
from smope.experts.routed import recorded
from smope.losses.classification import task_cross_entropy
from smope.losses.prototype import Prototypes, find_prototypes, prototype_loss, prototype_mass_loss
from smope.losses.router import router_loss, router_mass_loss
from smope.losses.similarity import similarity_loss
from smope.methods._shared.balance_losses import BalanceLosses
from smope.methods.base import BatchDependence, Batches, Method, Phase, Reference, TaskSpan
from smope.routers.base import Router, Routing
from smope.routers.step_sum import clear_step_sums


class SMoPE(Method):
    """A sparse mixture of prompt experts in the early blocks of a frozen ViT.

    It meets _shared/routed_method.RoutedMethod, by which others read experts and choices.

    Args:
        router: chooses the experts of an image.
        num_experts: E, in each head.
        blocks: which blocks get experts; None: the first six.
        router_loss_weight: 0 switches the loss off.
        prototype_loss_weight: 0 switches the loss off.
        expert_space: "head": keys and values join after the qkv projection (the authors' code).
            "input": before it, as P·W_K and P·W_V (the paper's formula).
        router_loss: "code": cross-entropy with a margin. "paper": softmax mass.
        prototype_loss: "code": cross-entropy. "paper": softmax mass.
        frequent_rule: "code": flags accumulate, and the threshold is the mean over used experts.
            "paper": flags are decided anew, and the mean is over all experts.
        usage_count: "running": selection during the counting pass follows the counts so far, so
            that it depends on the order of batches (the authors' code). "order_free": selection by
            score alone.
        expert_init: "uniform": keys and values from uniform(0, 1) (the authors' code), which shifts
            the backbone's features before anything is learned. "zero_values": keys from it, values
            0.
        importance_loss_weight, load_loss_weight, balance_loss_weight, router_z_loss_weight: losses
            against an uneven use of experts, in losses/balance.py; 0 switches a loss off.
        similarity_loss_weight: of losses/similarity.py, against experts that become alike; 0
            switches the loss off.
        expert_dropout: probability with which an expert is not available in a training step. At
            least K experts of a head stay available.
        reinitialise_unused: before each task from the second on, draw the experts again that no
            task has used.
        placement: where experts are. "prefix": in attention, keys and values of each head (the
            paper). "mlp": adapters beside the MLP. "lora": LoRA beside the qkv projection. The last
            two have one head as wide as the backbone, and add nothing until they have learned.
        rank: of an adapter or LoRA; a prefix has none.
        expert_rate_factor: learning rate of the experts, as a multiple of the classifier's.

    Raises:
        UserError: the router chooses more experts than there are, or cannot serve a loss.
    """

    dense_epochs: int = 0

    reference = Reference(
        "Le et al. 2026, arXiv 2509.24483 and the authors' code",
        published_parameters=0.384,
        published_gflops=(33.72, 33.72),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        router: Router,
        *,
        num_experts: Annotated[int, Range(1, 100_000)] = 25,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        router_loss_weight: Annotated[float, NotNegative()] = 1e-5,
        prototype_loss_weight: Annotated[float, NotNegative()] = 1e-5,
        expert_space: Literal["head", "input"] = "head",
        router_loss: Literal["code", "paper"] = "code",
        prototype_loss: Literal["code", "paper"] = "code",
        frequent_rule: Literal["code", "paper"] = "code",
        usage_count: Literal["running", "order_free"] = "running",
        expert_init: Literal["uniform", "zero_values"] = "uniform",
        importance_loss_weight: Annotated[float, NotNegative()] = 0.0,
        load_loss_weight: Annotated[float, NotNegative()] = 0.0,
        balance_loss_weight: Annotated[float, NotNegative()] = 0.0,
        router_z_loss_weight: Annotated[float, NotNegative()] = 0.0,
        similarity_loss_weight: Annotated[float, NotNegative()] = 0.0,
        expert_dropout: Annotated[float, Share(with_1=False)] = 0.0,
        reinitialise_unused: bool = False,
        placement: Placement = "prefix",
        rank: Annotated[int, AtLeast(1)] = 4,
        expert_rate_factor: Annotated[float, Positive()] = 5.0,
        align: bool = True,
        centroids: Annotated[int, Range(1, 1000)] = 1,
    ) -> None:
        super().__init__(backbone, num_classes, align=align, centroids=centroids)
        if not 1 <= router.top_k <= num_experts:
            raise UserError(
                f"router.top_k must be in 1..method.num_experts={num_experts}, got {router.top_k}; "
                "lower it or add experts"
            )
        balance = {
            "importance": importance_loss_weight,
            "load": load_loss_weight,
            "balance": balance_loss_weight,
            "router_z": router_z_loss_weight,
        }
        self._balance_losses = BalanceLosses(router, num_experts, balance)
        against_collapse = {
            "similarity_loss_weight": similarity_loss_weight,
            "expert_dropout": expert_dropout,
        }
        for setting, value in against_collapse.items():
            problem = value and no_effect(setting, router.name, router.sparse, router.top_k)
            if problem:
                raise UserError(f"method.{setting}={value:g}: {problem}")
        problem = placement_obstacle(
            placement,
            router.name,
            reads_tokens=router.reads_tokens,
            sparse=router.sparse,
            similarity_loss=similarity_loss_weight > 0,
        )
        if problem:
            raise UserError(problem)
        self.similarity_loss_weight = similarity_loss_weight
        self.reinitialise_unused = reinitialise_unused
        self._dropout = ExpertDropout(expert_dropout, router.top_k)
        self.router_loss_weight = router_loss_weight
        self.prototype_loss_weight = prototype_loss_weight
        self.router_loss = router_loss
        self.prototype_loss = prototype_loss
        self.frequent_rule = frequent_rule
        self.usage_count = usage_count
        self.expert_rate_factor = expert_rate_factor
        self.top_k = router.top_k
        self._prototypes: Prototypes | None = None  # follows from the banks' buffers

        zero_values = expert_init == "zero_values"

        def make_bank(layer: Any) -> ExpertBank:
            if placement == "mlp":
                return LowRankBank(Adapters(num_experts, rank, backbone.embed_dim))
            if placement == "lora":
                sizes = (layer.in_features, layer.out_features)
                return LowRankBank(LoRA(num_experts, rank, *sizes))
            heads, head_dim = layer.num_heads, layer.head_dim
            if expert_space == "input":
                return InputSpaceBank(heads, num_experts, head_dim, layer.qkv, zero_values)
            return PrefixBank(heads, num_experts, head_dim, zero_values)

        self._wrappers = tuple(
            attach(
                backbone.vit, range(6) if blocks is None else blocks, router, make_bank, placement
            )
        )
        # Registered after the backbone: Module.train() goes in this order, and the backbone puts
        # all of itself into evaluation mode.
        self.banks = nn.ModuleList(wrapper.bank for wrapper in self._wrappers)
        self.routers = nn.ModuleList(wrapper.router for wrapper in self._wrappers)

    def features(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    @property
    def experts(self) -> list[ExpertBank]:
        """The experts of each prompted block."""
        return [wrapper.bank for wrapper in self._wrappers]

    @property
    def routings(self) -> list[Routing]:
        """The choices of the last forward pass, one for each prompted block, without gradient."""
        return [wrapper.routing for wrapper in self._wrappers if wrapper.routing is not None]

    @property
    def _routers(self) -> list[Router]:
        return [wrapper.router for wrapper in self._wrappers]

    @property
    def dense(self) -> bool:
        """Whether all experts are used now, as in the warm-up before the first task."""
        return self._wrappers[0].dense

    @dense.setter
    def dense(self, value: bool) -> None:
        for wrapper in self._wrappers:
            wrapper.dense = value

    def needs_one_process(self) -> BatchDependence | None:
        router = self._wrappers[0].router
        return BatchDependence(*_instead(router)) if router.couples_batch else None

    def needs_whole_batch(self) -> BatchDependence | None:
        router = self._wrappers[0].router
        if router.random_in_training:
            return BatchDependence(*_instead(router))
        return self._balance_losses.batch_dependence() or super().needs_whole_batch()

    def begin_task(self, task: TaskSpan) -> None:
        """From the second task on: remember the experts' keys for the prototypes, and flag the
        experts that were used often.
        """
        self._prototypes = None
        if task.index == 0:
            return
        for bank in self.experts:
            bank.snapshot()
            bank.flag_frequent(cumulative=self.frequent_rule == "code")
            if self.reinitialise_unused:
                bank.reinitialise_unused()
        for router in self._routers:
            router.begin_task()

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        sparse = Phase("sparse", epochs)
        if task.index > 0 or self.dense_epochs == 0:
            return [sparse]
        return [Phase("dense", self.dense_epochs), sparse]

    def begin_phase(self, phase: Phase) -> None:
        self.dense = phase.name == "dense"
        self.abandon_step()

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        self._dropout.draw(self.experts)
        with recorded(self._wrappers) as routings:
            logits = self._training_logits(images)
        return {
            "cross_entropy": task_cross_entropy(logits, labels, task.classes),
            **self._auxiliary_losses(routings, task),
        }

    def abandon_step(self) -> None:
        self._dropout.end_step()
        for router in self._routers:
            clear_step_sums(router)

    def end_step(self) -> None:
        self._dropout.end_step()
        for router in self._routers:
            router.end_step()

    def _training_logits(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of the cross-entropy."""
        return self(images)

    def _auxiliary_losses(self, routings: list[Routing], task: TaskSpan) -> dict[str, Tensor]:
        """The weighted losses of router, balance and prototypes, where they apply."""
        losses = {}
        router = self._wrappers[0].router
        chooses = router.sparse and not self.dense
        if self.router_loss_weight > 0 and chooses:
            paper = self.router_loss == "paper"
            value = router_mass_loss(routings) if paper else router_loss(routings, router.epsilon)
            losses["router"] = self.router_loss_weight * value
        if chooses:
            scale = self._wrappers[0].scale
            drawn = [bank.state.available for bank in self.experts]
            available = [experts for experts in drawn if experts is not None]
            losses |= self._balance_losses(self._routers, routings, scale, available)
            if self.similarity_loss_weight > 0:
                losses["similarity"] = self.similarity_loss_weight * self._similarity(routings)
        if self.prototype_loss_weight > 0 and task.index > 0:
            function = prototype_mass_loss if self.prototype_loss == "paper" else prototype_loss
            value = function(*self._keys_and_prototypes())
            losses["prototype"] = self.prototype_loss_weight * value
        return losses

    def _similarity(self, routings: list[Routing]) -> Tensor:
        """The mean over blocks of the similarity loss."""
        values = [
            similarity_loss(bank()[1], routing.chosen, self.top_k)
            for bank, routing in zip(self.experts, routings, strict=True)
        ]
        return torch.stack(values).mean()

    def _keys_and_prototypes(self) -> tuple[Tensor, Prototypes]:
        """The keys (L, H, E, D), and the prototypes of this task, which are found once."""
        pairs = [
            router.compared(bank.old_keys, bank()[0])
            for bank, router in zip(self.experts, self._routers, strict=True)
        ]
        if self._prototypes is None:
            old_keys = torch.stack([old for old, _ in pairs]).detach()
            frequent = torch.stack([bank.frequent for bank in self.experts])
            self._prototypes = find_prototypes(old_keys, frequent, self.top_k)
        return torch.stack([keys for _, keys in pairs]), self._prototypes

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        """The usage pass: over one training epoch, count the experts that each image uses, as the
        router says: SMoPE's takes the best K by raw score.
        """
        self.dense = False
        self._prototypes = None  # as many as experts were frequent; only training needs them
        earlier = [bank.counts.clone() for bank in self.experts]
        if self.usage_count == "order_free":
            for bank in self.experts:
                # With equal counts no expert is treated as unused, whatever the order of batches.
                bank.counts.fill_(1)
        for images, _ in batches("train"):
            self.features(images)
            used = zip(self.experts, self.routings, self._routers, strict=True)
            for bank, routing, router in used:
                bank.count(router.uses(routing))
        if self.usage_count == "order_free":
            for bank, before in zip(self.experts, earlier, strict=True):
                bank.counts += before - 1

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        experts = {
            "params": list(self.prompt_parameters()),
            "lr": self.expert_rate_factor * learning_rate,
        }
        return [experts, *super().parameter_groups(learning_rate)]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        return [*self.banks.parameters(), *self.routers.parameters()]


def _instead(router: Router) -> tuple[str, str]:
    """A router as a setting, and another one that routes each image by itself."""
    return f"router={router.name}", "router=topk"
