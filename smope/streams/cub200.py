"""CUB-200-2011 (Wah et al., 2011): 11,788 pictures of 200 kinds of birds, from a local copy in
three layouts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from smope.streams import folder
from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import MakeError
from smope.streams.layouts import key_value
from smope.streams.layouts.known_classes import (
    ClassFolders,
    ClassParquet,
    KnownClassesDataset,
    Splits,
    holds_classes,
)
from smope.streams.source import ImageSet, Source

_NAMES = """
Black_footed_Albatross Laysan_Albatross Sooty_Albatross Groove_billed_Ani Crested_Auklet
Least_Auklet Parakeet_Auklet Rhinoceros_Auklet Brewer_Blackbird Red_winged_Blackbird Rusty_Blackbird
Yellow_headed_Blackbird Bobolink Indigo_Bunting Lazuli_Bunting Painted_Bunting Cardinal
Spotted_Catbird Gray_Catbird Yellow_breasted_Chat Eastern_Towhee Chuck_will_Widow Brandt_Cormorant
Red_faced_Cormorant Pelagic_Cormorant Bronzed_Cowbird Shiny_Cowbird Brown_Creeper American_Crow
Fish_Crow Black_billed_Cuckoo Mangrove_Cuckoo Yellow_billed_Cuckoo Gray_crowned_Rosy_Finch
Purple_Finch Northern_Flicker Acadian_Flycatcher Great_Crested_Flycatcher Least_Flycatcher
Olive_sided_Flycatcher Scissor_tailed_Flycatcher Vermilion_Flycatcher Yellow_bellied_Flycatcher
Frigatebird Northern_Fulmar Gadwall American_Goldfinch European_Goldfinch Boat_tailed_Grackle
Eared_Grebe Horned_Grebe Pied_billed_Grebe Western_Grebe Blue_Grosbeak Evening_Grosbeak
Pine_Grosbeak Rose_breasted_Grosbeak Pigeon_Guillemot California_Gull Glaucous_winged_Gull
Heermann_Gull Herring_Gull Ivory_Gull Ring_billed_Gull Slaty_backed_Gull Western_Gull
Anna_Hummingbird Ruby_throated_Hummingbird Rufous_Hummingbird Green_Violetear Long_tailed_Jaeger
Pomarine_Jaeger Blue_Jay Florida_Jay Green_Jay Dark_eyed_Junco Tropical_Kingbird Gray_Kingbird
Belted_Kingfisher Green_Kingfisher Pied_Kingfisher Ringed_Kingfisher White_breasted_Kingfisher
Red_legged_Kittiwake Horned_Lark Pacific_Loon Mallard Western_Meadowlark Hooded_Merganser
Red_breasted_Merganser Mockingbird Nighthawk Clark_Nutcracker White_breasted_Nuthatch
Baltimore_Oriole Hooded_Oriole Orchard_Oriole Scott_Oriole Ovenbird Brown_Pelican White_Pelican
Western_Wood_Pewee Sayornis American_Pipit Whip_poor_Will Horned_Puffin Common_Raven
White_necked_Raven American_Redstart Geococcyx Loggerhead_Shrike Great_Grey_Shrike Baird_Sparrow
Black_throated_Sparrow Brewer_Sparrow Chipping_Sparrow Clay_colored_Sparrow House_Sparrow
Field_Sparrow Fox_Sparrow Grasshopper_Sparrow Harris_Sparrow Henslow_Sparrow Le_Conte_Sparrow
Lincoln_Sparrow Nelson_Sharp_tailed_Sparrow Savannah_Sparrow Seaside_Sparrow Song_Sparrow
Tree_Sparrow Vesper_Sparrow White_crowned_Sparrow White_throated_Sparrow Cape_Glossy_Starling
Bank_Swallow Barn_Swallow Cliff_Swallow Tree_Swallow Scarlet_Tanager Summer_Tanager Artic_Tern
Black_Tern Caspian_Tern Common_Tern Elegant_Tern Forsters_Tern Least_Tern Green_tailed_Towhee
Brown_Thrasher Sage_Thrasher Black_capped_Vireo Blue_headed_Vireo Philadelphia_Vireo Red_eyed_Vireo
Warbling_Vireo White_eyed_Vireo Yellow_throated_Vireo Bay_breasted_Warbler Black_and_white_Warbler
Black_throated_Blue_Warbler Blue_winged_Warbler Canada_Warbler Cape_May_Warbler Cerulean_Warbler
Chestnut_sided_Warbler Golden_winged_Warbler Hooded_Warbler Kentucky_Warbler Magnolia_Warbler
Mourning_Warbler Myrtle_Warbler Nashville_Warbler Orange_crowned_Warbler Palm_Warbler Pine_Warbler
Prairie_Warbler Prothonotary_Warbler Swainson_Warbler Tennessee_Warbler Wilson_Warbler
Worm_eating_Warbler Yellow_Warbler Northern_Waterthrush Louisiana_Waterthrush Bohemian_Waxwing
Cedar_Waxwing American_Three_toed_Woodpecker Pileated_Woodpecker Red_bellied_Woodpecker
Red_cockaded_Woodpecker Red_headed_Woodpecker Downy_Woodpecker Bewick_Wren Cactus_Wren Carolina_Wren
House_Wren Marsh_Wren Rock_Wren Winter_Wren Common_Yellowthroat
"""
# in the official numbering, from classes.txt, without the numbers
CLASS_NAMES = tuple(_NAMES.split())
IMAGES, LABELS, SPLIT = LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
CLASS_OF_NUMBER = {str(class_id + 1): class_id for class_id in range(len(CLASS_NAMES))}
SPLIT_OF_FLAG = {"0": "test", "1": "train"}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]+", "_", name.lower()).strip("_")


_CLASS_IDS = {_letters(name): class_id for class_id, name in enumerate(CLASS_NAMES)}


def class_id_of(name: str) -> int | None:
    """The class of a name with or without its number: 001.Black_footed_Albatross or Black footed
    albatross.
    """
    return _CLASS_IDS.get(_letters(name))


class ImageLists:
    """Layout: the archive, whose three lists name the images and their classes and splits."""

    def is_in(self, directory: Path) -> bool:
        """An archive that was not unpacked to its end may lack the lists."""
        has_list = any(os.path.isfile(directory / name) for name in LISTS)
        return has_list or holds_classes(directory / "images", class_id_of)

    def looks_right(self, directory: Path) -> bool:
        return True

    def read(self, root: str, directory: Path, make_error: MakeError) -> Splits:
        """The images that images.txt names and no others: there are a few more files on disk."""
        lists = {name: key_value.read(directory / name, make_error) for name in LISTS}
        _require_same_numbers(directory, lists, make_error)
        paths = {
            number: directory / "images" / value.text for number, value in lists[IMAGES].items()
        }
        key_value.require_files(list(paths.values()), IMAGES, DATASET.archive, make_error)
        targets: dict[str, list[int]] = {"train": [], "test": []}
        files: dict[str, list[Path]] = {"train": [], "test": []}
        for number, path in paths.items():
            flag = _checked(lists[SPLIT][number], SPLIT_OF_FLAG, directory / SPLIT, make_error)
            label = _checked(lists[LABELS][number], CLASS_OF_NUMBER, directory / LABELS, make_error)
            targets[SPLIT_OF_FLAG[flag]].append(CLASS_OF_NUMBER[label])
            files[SPLIT_OF_FLAG[flag]].append(path)
        train, test = (ImageSet(targets[split], files[split]) for split in ("train", "test"))
        return Splits(train, test, "test")


DATASET = KnownClassesDataset(
    name="cub200",
    title="CUB-200-2011",
    # page: https://data.caltech.edu/records/65de6-vp158; md5 as recorded by Avalanche, size by
    # tensorflow_datasets
    archive=Archive(
        url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        filename="CUB_200_2011.tgz",
        md5="97eceeb196236b17998738112f37df78",
        size=1150585339,
    ),
    top="CUB_200_2011",
    accepted=(
        "the archive as it unpacks (CUB_200_2011/ or the folder above it), class folders "
        "train/<class>/ and test/<class>/, or parquet files train-*.parquet and test-*.parquet "
        "(in data/)"
    ),
    layouts=(ImageLists(), ClassFolders(class_id_of), ClassParquet(class_id_of)),
    class_names=CLASS_NAMES,
    published={"train": 5994, "test": 5794},
)


def load(root: str, download: bool = False) -> Source:
    """CUB-200-2011 with the official split into 5,994 and 5,794 images.

    Class ids are the official numbers less one in every layout. Other numbers of images are
    accepted, with a warning, but all 200 classes must have training and test images. Images of
    parquet files are kept in memory as they are encoded: 1.2 GB.

    Args:
        root: folder that holds the unpacked archive, class folders or parquet files.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted.
    """
    source, _ = DATASET.load(root, download)
    return source


def _require_same_numbers(
    directory: Path, lists: Mapping[str, Mapping[str, key_value.Value]], make_error: MakeError
) -> None:
    numbers = dict.fromkeys(number for values in lists.values() for number in values)
    for name, values in lists.items():
        absent = [number for number in numbers if number not in values]
        if absent:
            raise make_error(
                f"{directory / name} has no line for {len(absent):,} of {len(numbers):,} images "
                f"that other lists have, the first is number {absent[0]}; unpack "
                f"{DATASET.archive.filename} again"
            )


def _checked(
    value: key_value.Value, accepted: Mapping[str, object], path: Path, make_error: MakeError
) -> str:
    if value.text not in accepted:
        expected = folder.shortened(list(accepted))
        raise make_error(
            f"line {value.line} of {path} has {value.text[:80]!r} where one of {expected} is "
            "expected"
        )
    return value.text
