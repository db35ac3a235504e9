"""Published settings stay what they are: conf/benchmark and conf/recipe compose to known hashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from smope.config.conf_files import choices, conf_dir
from smope.config.hydra import compose, compose_values
from smope.config.overrides import read_overrides
from smope.errors import UserError

BENCHMARKS = ("cifar100", "cub200", "imagenet_r_10")
# config_hash of each method on these benchmarks with stream.root=/. A hash that changes means other
# published settings, or a key that is new in every configuration: see what
# `smope train --dry-run` shows before and after, and say it in CHANGELOG.md.
HASHES = {
    "anacp": ("3fe151176de9", "4a231693c817", "bb3e1c0f5302"),
    "coda": ("b9f76047b7a0", "7cfde56ccd1e", "222f164d740a"),
    "deep_l2p": ("8777c95dc2ea", "7aafff55ea54", "2538622a568c"),
    "dualprompt": ("1dac869419c9", "1ede5afb5485", "6f1e8189f274"),
    "ease": ("d97ded516dd5", "c23e034173d1", "87285e95c498"),
    "fecam": ("a1fa232fd980", "2e3e6b645b40", "09cabe95e743"),
    "finetune": ("5b1ef5a5e811", "57d158aebb63", "c724c24ab128"),
    "full_finetune": ("9251d8f95476", "5aa94b7551fb", "4978779ec632"),
    "hide": ("a04d79a89675", "e4625ebd4dc3", "1d6360204874"),
    "inflora": ("8b9b7d47e53b", "b824f61e7929", "8bff002ea6ec"),
    "joint": ("047e1dfc3cc0", "e57f92607426", "cfb1a1e16555"),
    "klda": ("ec644d1492e9", "18908eb97519", "2d25037b16d2"),
    "l2p": ("832281792e51", "6dfcd71ea5bf", "949d66a3ac5c"),
    "layup": ("ef57dcfb6733", "7811435f901b", "d227b580a9b1"),
    "linear_probe": ("bc2ad7601cc5", "06d53cf4f8be", "7fd27bf5626d"),
    "min": ("014333603949", "49c13cc2b81f", "8374c5517bca"),
    "ncm": ("e5faa29f6bc0", "4025f98f9ddc", "bf45eb5cfdbb"),
    "norga": ("7472192c98d4", "e4347dea5352", "21777ecf37cd"),
    "ovor": ("b20424760ef8", "8a5a6b41745d", "7f6f9ec7e05e"),
    "rsiat": ("c3d89de60e7b", "2fbb9b31ba92", "142a9aeb15a9"),
    "smope": ("fc0be1fef7ce", "c5f1b1b35008", "1be30ca725ac"),
    "ranpac": ("04e8dcf8b57d", "1f42b6121e6b", "bdaa8ff20041"),
    "rgda": ("6c48c0f7baf6", "58f7d292d28b", "07c5fff81442"),
    "ridge": ("868d8efb09e7", "c85a382bacf8", "262414731af4"),
    "slca": ("0d72ef87d39d", "45b7d2b6b6e5", "28db1009e256"),
    "slda": ("39fd3a7f5ad9", "7f667d0573e3", "056f8be49514"),
    "sldc": ("fa4ad099ab7c", "28165dbd9943", "6fcdcc52275a"),
    "tuna": ("acf90dc4c60c", "1755e59e2592", "2f954cc8d511"),
    "vq": ("be44e0cc5a52", "639011395930", "c4762f642711"),
}
# Rows of the paper that are no benchmark of their own.
ROWS = {
    "paper_imagenet_r_10_dino": "be427fbf030f",
    "paper_imagenet_r_20": "0e2bd5df145d",
    "paper_imagenet_r_5": "4a860444ef25",
}


def config_hash(*texts: str) -> str:
    return compose(read_overrides([*texts, "stream.root=/"])).config_hash


@pytest.mark.parametrize("method", HASHES)
def test_settings_of_each_method_on_each_benchmark(method: str) -> None:
    made = [config_hash(f"benchmark={name}", f"method={method}") for name in BENCHMARKS]
    assert tuple(made) == HASHES[method]


@pytest.mark.parametrize("row", ROWS)
def test_settings_of_the_papers_other_rows(row: str) -> None:
    assert config_hash(f"experiment={row}") == ROWS[row]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_the_paper_are_smope_on_a_benchmark(name: str) -> None:
    assert config_hash(f"experiment=paper_{name}") == config_hash(f"benchmark={name}")


def test_every_benchmark_is_in_the_table() -> None:
    assert tuple(choices("benchmark", [conf_dir()])) == BENCHMARKS


def test_every_recipe_is_one_of_a_method() -> None:
    assert set(choices("recipe", [conf_dir()])) <= set(choices("method", [conf_dir()]))


def test_without_a_benchmark_no_recipe_counts() -> None:
    values = compose_values(read_overrides(["method=ridge"]))
    assert values["method"]["width"] == 2000


def test_what_the_command_line_says_counts_more_than_a_recipe() -> None:
    values = compose_values(
        read_overrides(["method=ridge", "method.width=7", "benchmark=cifar100"])
    )
    assert values["method"]["width"] == 7


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder laid out like conf/, with a benchmark, and recipes of a new and a shipped method."""
    files = {
        "benchmark/four_digits.yaml": "# @package _global_\n"
        "defaults:\n  - override /stream: digits\nname: four_digits\n",
        "method/mine.yaml": "_target_: smope.methods.ncm.NearestClassMean\n",
        "recipe/mine.yaml": "four_digits:\n  method: {similarity: euclidean}\n",
        "recipe/ridge.yaml": "all:\n  method: {width: 3000}\n  trainer: {epochs: '${seed}'}\n"
        "four_digits:\n  method: {width: 4000}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("texts", "key", "value"),
    [
        (["method=mine", "benchmark=four_digits"], "similarity", "euclidean"),
        (["method=ridge", "benchmark=four_digits"], "width", 4000),
        (["method=ridge", "benchmark=cifar100"], "width", 3000),
    ],
)
def test_a_folder_of_ones_own_adds_benchmarks_and_recipes(
    own: Path, texts: list[str], key: str, value: object
) -> None:
    assert compose_values(read_overrides(texts, str(own)))["method"][key] == value


def test_recipes_of_another_folder_are_forgotten(own: Path) -> None:
    texts = ["method=ridge", "benchmark=cifar100"]
    assert compose_values(read_overrides(texts, str(own)))["method"]["width"] == 3000
    assert compose_values(read_overrides(texts))["method"]["width"] == 10_000


def test_a_recipe_may_refer_to_other_keys(own: Path) -> None:
    texts = ["method=ridge", "benchmark=cifar100", "seed=7"]
    assert compose_values(read_overrides(texts, str(own)))["trainer"]["epochs"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar10:\n  method: {width: 5}\n", "section cifar10 is no benchmark; write one of all, "),
        ("- a list\n", "must be a mapping of keys; correct it"),
        ("all: {\n", "is not readable YAML"),
        ("all: 5\n", "section all must be a mapping of groups to their keys"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_why(own: Path, text: str, message: str) -> None:
    path = own / "recipe" / "ridge.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        compose_values(read_overrides(["benchmark=cifar100", "method=ridge"], str(own)))
    assert str(path) in str(raised.value)
