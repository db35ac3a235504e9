"""The rows that `smope reproduce` knows: those of the paper, and of methods beside it.

The paper is Le et al. 2026 (arXiv 2509.24483), seeds 0-4. Rows of other methods have their
published settings on the paper's benchmarks. Where these are not those of a printed number, the
number is in the note, and not compared. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from smope.reproduction.published import PublishedRow, SeedMean


def _imagenet_r(
    tasks: int, backbone: str, paper: Mapping[str, SeedMean], note: str = ""
) -> PublishedRow:
    title = f"SMoPE on ImageNet-R, {tasks} tasks, {backbone}"
    return PublishedRow(
        title, _IMAGENET_R, 24_000, 6_000, paper, facts={"split": "published lists"}, note=note
    )


_IMAGENET_R = (
    "ImageNet-R with the split lists published with CODA-Prompt, imagenet-r_train.yaml and "
    "imagenet-r_test.yaml, in stream.root or in stream.split_lists=<folder>"
)
_NO_NUMBER = (
    "No published number for this row is recorded here, so there is nothing to compare with."
)
_NO_SETTINGS = (
    "The authors published no settings for this backbone, so those of the Sup-1K row are used; no "
    "standard deviation is recorded here."
)
# The names are those of conf/experiment/.
OF_THE_PAPER: dict[str, PublishedRow] = {
    "paper_cifar100": PublishedRow(
        "SMoPE on CIFAR-100, 10 tasks, Sup-1K",
        "CIFAR-100",
        50_000,
        10_000,
        {
            "final_average_accuracy": SeedMean(89.23, 0.12),
            "cumulative_average_accuracy": SeedMean(93.67),
        },
        {
            "final_average_accuracy": SeedMean(88.88),
            "cumulative_average_accuracy": SeedMean(92.78),
            "forgetting": SeedMean(4.30),
        },
        note="The independent repeat's FAA is itself 0.35 below the paper's, outside by the "
        "paper's own spread.",
    ),
    "paper_cub200": PublishedRow(
        "SMoPE on CUB-200, 10 tasks, Sup-21K",
        "CUB-200-2011 with its train_test_split.txt",
        5_994,
        5_794,
        {
            "final_average_accuracy": SeedMean(87.43, 0.39),
            "cumulative_average_accuracy": SeedMean(91.11),
        },
    ),
    "paper_imagenet_r_5": _imagenet_r(5, "Sup-1K", {}, _NO_NUMBER),
    "paper_imagenet_r_10": _imagenet_r(
        10,
        "Sup-1K",
        {
            "final_average_accuracy": SeedMean(79.32, 0.42),
            "cumulative_average_accuracy": SeedMean(84.39),
        },
    ),
    "paper_imagenet_r_20": _imagenet_r(20, "Sup-1K", {}, _NO_NUMBER),
    "paper_imagenet_r_10_ibot": _imagenet_r(
        10, "iBOT", {"final_average_accuracy": SeedMean(72.17)}, _NO_SETTINGS
    ),
    "paper_imagenet_r_10_dino": _imagenet_r(
        10, "DINO", {"final_average_accuracy": SeedMean(68.61)}, _NO_SETTINGS
    ),
}


def _peer(
    method: str, source: str, note: str, paper: Mapping[str, Mapping[str, SeedMean]] | None = None
) -> dict[str, PublishedRow]:
    """The rows of a method on the three benchmarks, by name.

    Args:
        method: its name as conf/method has it, and a blank, and its title.
        source: the paper, in short.
        note: for every card of the method.
        paper: printed scores by benchmark.
    """
    name, _, title = method.partition(" ")
    return {
        f"{name}_{benchmark}": PublishedRow(
            f"{title} on {data}, 10 tasks",
            images,
            train,
            test,
            (paper or {}).get(benchmark, {}),
            facts=facts,
            note=note,
            source=source,
        )
        for benchmark, (data, images, train, test, facts) in _BENCHMARKS.items()
    }


# By the names of conf/benchmark/.
_BENCHMARKS: dict[str, tuple[str, str, int, int, dict[str, str]]] = {
    "cifar100": ("CIFAR-100", "CIFAR-100", 50_000, 10_000, {}),
    "cub200": ("CUB-200", "CUB-200-2011 with its train_test_split.txt", 5_994, 5_794, {}),
    "imagenet_r_10": ("ImageNet-R", _IMAGENET_R, 24_000, 6_000, {"split": "published lists"}),
}
_FAA, _CAA = "final_average_accuracy", "cumulative_average_accuracy"


def _printed(final: float, average: float, seeds: int) -> dict[str, SeedMean]:
    """Last and average accuracy of a paper that prints no deviation here."""
    return {_FAA: SeedMean(final, seeds=seeds), _CAA: SeedMean(average, seeds=seeds)}


# What the rows of papers below have in common; the backbone is the row's.
_IN21K = (
    "Printed for ViT-B/16 of ImageNet-21K (Sup-21K), with the class order of seed 1993 and "
    "accuracy over images, where ours is the mean over tasks."
)
OF_PEERS: dict[str, PublishedRow] = {
    **_peer(
        "rsiat RSIAT",
        "RSIAT, CVPR 2026",
        f"{_IN21K} One seed is printed, with settings that were tuned on test accuracy. On CUB-200 "
        "its number (90.59, average 93.99) is for 20 tasks, so none is recorded for this row.",
        {"cifar100": _printed(92.20, 95.15, 1), "imagenet_r_10": _printed(82.75, 86.92, 1)},
    ),
    **_peer(
        "slca SLCA",
        "Zhang et al. 2023",
        f"{_IN21K} Its optimizer is SGD, ours AdamW at another rate.",
        {
            "cifar100": _printed(91.53, 94.09, 3),
            "cub200": _printed(84.71, 90.94, 3),
            "imagenet_r_10": _printed(77.00, 81.17, 3),
        },
    ),
    **_peer(
        "sldc SLDC",
        "SLDC, AAAI 2026",
        f"{_IN21K} The number may be that of its variant with auxiliary images of ImageNet.",
        {
            "cifar100": _printed(91.48, 94.38, 3),
            "cub200": _printed(87.15, 92.38, 3),
            "imagenet_r_10": _printed(80.00, 84.01, 3),
        },
    ),
    **_peer(
        "tuna TUNA",
        "Wang et al. 2025",
        f"{_IN21K} Printed without a number of seeds, which is taken as one, and with settings "
        "that were chosen on test accuracy. Its optimizer is SGD, ours AdamW at another rate.",
        {
            "cifar100": _printed(91.79, 94.88, 1),
            "cub200": _printed(88.40, 92.01, 1),
            "imagenet_r_10": _printed(79.44, 84.80, 1),
        },
    ),
    **_peer(
        "ease EASE",
        "Zhou et al. 2024",
        f"{_IN21K} One seed is printed, that of the authors' log, with settings that were chosen "
        "on test accuracy. Its CIFAR-100 and CUB-200 have 20 tasks (85.80 and 86.81), so no number "
        "is recorded for these rows.",
        {"imagenet_r_10": _printed(76.17, 81.74, 1)},
    ),
    **_peer(
        "inflora InfLoRA",
        "Liang and Li 2024",
        "For ViT-B/16 of ImageNet-21K (Sup-21K), in the order of class numbers and accuracy over "
        "images, where ours is the mean over tasks. The numbers of CIFAR-100 are those of the five "
        "logs that the authors' code comes with, which begin with five seeds and have the same "
        "order of classes; that of ImageNet-R is as later papers quote it, without the average. "
        "There is none for CUB-200, for which the settings are those of ImageNet-R.",
        {
            "cifar100": {_FAA: SeedMean(86.33, 0.81), _CAA: SeedMean(91.18, 0.40)},
            "imagenet_r_10": {_FAA: SeedMean(75.65)},
        },
    ),
    **_peer(
        "layup LayUP",
        "Ahrens et al. 2024",
        "No number is recorded here. Those of the paper have a first session, which adapts the "
        "backbone to the first task, and which is not part of this row.",
    ),
    **_peer(
        "klda KLDA, DINOv2",
        "Momeni et al. 2025",
        "No number is recorded here: the paper classifies texts, and later runs with images have "
        "orders and splits of their own. The kernel's width is that of these runs, for DINOv2.",
    ),
    **_peer(
        "rgda RGDA",
        "Rao et al. 2026",
        "No number is recorded here. Those of the paper are on features that are trained in every "
        "task, which is not part of this row.",
    ),
    **_peer(
        "anacp AnaCP, DINOv2",
        "Momeni et al. 2025",
        "No number is recorded here. Those of the code have a first session, which adapts the "
        "backbone to the first task, and which is not part of this row.",
    ),
    **_peer(
        "min MiN",
        "Jiang et al. 2025",
        f"{_IN21K} One seed is printed, with a penalty and a width chosen for each data set. On "
        "CUB-200 its numbers (91.22, average 94.00) are for PILOT's split into 9,430 and 2,358 "
        "images, so none is recorded for this row. The public code trains other parts than the "
        "paper describes; this row follows the paper.",
        {"cifar100": _printed(92.12, 95.12, 1), "imagenet_r_10": _printed(79.75, 85.18, 1)},
    ),
}
ROWS = {**OF_THE_PAPER, **OF_PEERS}
