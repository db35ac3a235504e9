"""Every method of smope/methods as a module for a training loop of your own.

A class takes the arguments of its method, with the same defaults. Any other method, such as one of
your own, is used as Learner(method).
"""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import Any, ClassVar

from torch import nn

from smope.loops.arguments import make_method, public_parameters
from smope.loops.learner import Learner
from smope.methods import (
    anacp,
    coda,
    deep_l2p,
    dualprompt,
    ease,
    fecam,
    finetune,
    full_finetune,
    hide,
    inflora,
    joint,
    klda,
    l2p,
    layup,
    linear_probe,
    min,
    ncm,
    norga,
    ovor,
    ranpac,
    rgda,
    ridge,
    rsiat,
    slca,
    slda,
    sldc,
    smope,
    smope_plus,
    tuna,
    vq,
)
from smope.methods.base import Method


class MethodLearner(Learner):
    """A learner that makes its method.

    Args:
        backbone: a name of timm, with its tag, whose weights come from the Hugging Face Hub; a name
            of conf/backbone, such as "sup21k" or "glyph_vit"; a ViT of timm, which is frozen and
            changed; or what smope.backbones.vit.load_backbone returns.
        num_classes: N, of all tasks together.
        seed: first weights and later draws are those of `smope train` with this seed. None: first
            weights come from torch's global generator, as those of other modules do.
        settings: the arguments of the method. `router` is a router or a name of conf/router.

    Raises:
        UserError: an argument is unknown, missing, of another type or out of range.
    """

    method_class: ClassVar[type[Method]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        seed = Parameter("seed", Parameter.KEYWORD_ONLY, default=None, annotation="int | None")
        cls.__signature__ = Signature([*public_parameters(cls.method_class), seed])
        cls.__doc__ = f"{cls.method_class.__doc__}\n    {NOTE}"

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        method = make_method(self.method_class, backbone, num_classes, settings, seed)
        super().__init__(method, seed=seed)


NOTE = "A module for a training loop of your own: see smope.Learner."


class AnaCP(MethodLearner):
    method_class = anacp.AnaCP


class CODAPrompt(MethodLearner):
    method_class = coda.CODAPrompt


class DeepL2P(MethodLearner):
    method_class = deep_l2p.DeepL2P


class DualPrompt(MethodLearner):
    method_class = dualprompt.DualPrompt


class EASE(MethodLearner):
    method_class = ease.EASE


class FeCAM(MethodLearner):
    method_class = fecam.FeCAM


class Finetune(MethodLearner):
    method_class = finetune.Finetune


class FullFinetune(MethodLearner):
    method_class = full_finetune.FullFinetune


class HiDePrompt(MethodLearner):
    method_class = hide.HiDePrompt


class InfLoRA(MethodLearner):
    method_class = inflora.InfLoRA


class Joint(MethodLearner):
    method_class = joint.Joint


class KernelLDA(MethodLearner):
    method_class = klda.KernelLDA


class L2P(MethodLearner):
    method_class = l2p.L2P


class LayUP(MethodLearner):
    method_class = layup.LayUP


class LinearProbe(MethodLearner):
    method_class = linear_probe.LinearProbe


class MiN(MethodLearner):
    method_class = min.MiN


class NearestClassMean(MethodLearner):
    method_class = ncm.NearestClassMean


class NoRGa(MethodLearner):
    method_class = norga.NoRGa


class OVOR(MethodLearner):
    method_class = ovor.OVOR


class RanPAC(MethodLearner):
    method_class = ranpac.RanPAC


class RegularisedGDA(MethodLearner):
    method_class = rgda.RegularisedGDA


class Ridge(MethodLearner):
    method_class = ridge.Ridge


class RSIAT(MethodLearner):
    method_class = rsiat.RSIAT


class SLCA(MethodLearner):
    method_class = slca.SLCA


class SLDC(MethodLearner):
    method_class = sldc.SLDC


class SMoPE(MethodLearner):
    method_class = smope.SMoPE


class SMoPEPlus(MethodLearner):
    method_class = smope_plus.SMoPEPlus


class StreamingLDA(MethodLearner):
    method_class = slda.StreamingLDA


class TUNA(MethodLearner):
    method_class = tuna.TUNA


class VQPrompt(MethodLearner):
    method_class = vq.VQPrompt
