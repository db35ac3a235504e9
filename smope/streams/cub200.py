"""CUB-200-2011 (Wah et al., 2011): 11,788 pictures of 200 kinds of birds, from a local copy in
three layouts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from smope.errors import UserError
from smope.streams import folder
from smope.streams.archives import locate
from smope.streams.archives.download import Archive
from smope.streams.layouts import key_value, known_classes, parquet
from smope.streams.layouts.parquet import Refused
from smope.streams.source import ImageSet, Source

_NAMES = """
Black_footed_Albatross Laysan_Albatross Sooty_Albatross Groove_billed_Ani Crested_Auklet Least_Auklet
Parakeet_Auklet Rhinoceros_Auklet Brewer_Blackbird Red_winged_Blackbird Rusty_Blackbird
Yellow_headed_Blackbird Bobolink Indigo_Bunting Lazuli_Bunting Painted_Bunting Cardinal Spotted_Catbird
Gray_Catbird Yellow_breasted_Chat Eastern_Towhee Chuck_will_Widow Brandt_Cormorant Red_faced_Cormorant
Pelagic_Cormorant Bronzed_Cowbird Shiny_Cowbird Brown_Creeper American_Crow Fish_Crow Black_billed_Cuckoo
Mangrove_Cuckoo Yellow_billed_Cuckoo Gray_crowned_Rosy_Finch Purple_Finch Northern_Flicker Acadian_Flycatcher
Great_Crested_Flycatcher Least_Flycatcher Olive_sided_Flycatcher Scissor_tailed_Flycatcher
Vermilion_Flycatcher Yellow_bellied_Flycatcher Frigatebird Northern_Fulmar Gadwall American_Goldfinch
European_Goldfinch Boat_tailed_Grackle Eared_Grebe Horned_Grebe Pied_billed_Grebe Western_Grebe Blue_Grosbeak
Evening_Grosbeak Pine_Grosbeak Rose_breasted_Grosbeak Pigeon_Guillemot California_Gull Glaucous_winged_Gull
Heermann_Gull Herring_Gull Ivory_Gull Ring_billed_Gull Slaty_backed_Gull Western_Gull Anna_Hummingbird
Ruby_throated_Hummingbird Rufous_Hummingbird Green_Violetear Long_tailed_Jaeger Pomarine_Jaeger Blue_Jay
Florida_Jay Green_Jay Dark_eyed_Junco Tropical_Kingbird Gray_Kingbird Belted_Kingfisher Green_Kingfisher
Pied_Kingfisher Ringed_Kingfisher White_breasted_Kingfisher Red_legged_Kittiwake Horned_Lark Pacific_Loon
Mallard Western_Meadowlark Hooded_Merganser Red_breasted_Merganser Mockingbird Nighthawk Clark_Nutcracker
White_breasted_Nuthatch Baltimore_Oriole Hooded_Oriole Orchard_Oriole Scott_Oriole Ovenbird Brown_Pelican
White_Pelican Western_Wood_Pewee Sayornis American_Pipit Whip_poor_Will Horned_Puffin Common_Raven
White_necked_Raven American_Redstart Geococcyx Loggerhead_Shrike Great_Grey_Shrike Baird_Sparrow
Black_throated_Sparrow Brewer_Sparrow Chipping_Sparrow Clay_colored_Sparrow House_Sparrow Field_Sparrow
Fox_Sparrow Grasshopper_Sparrow Harris_Sparrow Henslow_Sparrow Le_Conte_Sparrow Lincoln_Sparrow
Nelson_Sharp_tailed_Sparrow Savannah_Sparrow Seaside_Sparrow Song_Sparrow Tree_Sparrow Vesper_Sparrow
White_crowned_Sparrow White_throated_Sparrow Cape_Glossy_Starling Bank_Swallow Barn_Swallow Cliff_Swallow
Tree_Swallow Scarlet_Tanager Summer_Tanager Artic_Tern Black_Tern Caspian_Tern Common_Tern Elegant_Tern
Forsters_Tern Least_Tern Green_tailed_Towhee Brown_Thrasher Sage_Thrasher Black_capped_Vireo Blue_headed_Vireo
Philadelphia_Vireo Red_eyed_Vireo Warbling_Vireo White_eyed_Vireo Yellow_throated_Vireo Bay_breasted_Warbler
Black_and_white_Warbler Black_throated_Blue_Warbler Blue_winged_Warbler Canada_Warbler Cape_May_Warbler
Cerulean_Warbler Chestnut_sided_Warbler Golden_winged_Warbler Hooded_Warbler Kentucky_Warbler Magnolia_Warbler
Mourning_Warbler Myrtle_Warbler Nashville_Warbler Orange_crowned_Warbler Palm_Warbler Pine_Warbler
Prairie_Warbler Prothonotary_Warbler Swainson_Warbler Tennessee_Warbler Wilson_Warbler Worm_eating_Warbler
Yellow_Warbler Northern_Waterthrush Louisiana_Waterthrush Bohemian_Waxwing Cedar_Waxwing
American_Three_toed_Woodpecker Pileated_Woodpecker Red_bellied_Woodpecker Red_cockaded_Woodpecker
Red_headed_Woodpecker Downy_Woodpecker Bewick_Wren Cactus_Wren Carolina_Wren House_Wren Marsh_Wren Rock_Wren
Winter_Wren Common_Yellowthroat
"""
# in the official numbering, from classes.txt, without the numbers
CLASS_NAMES = tuple(_NAMES.split())
PUBLISHED = {"train": 5994, "test": 5794}  # images
# page: https://data.caltech.edu/records/65de6-vp158; md5 as recorded by Avalanche, size by
# tensorflow_datasets
ARCHIVE = Archive(
    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    filename="CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    size=1150585339,
)
_TOP = "CUB_200_2011"
LAYOUTS = (
    f"the archive as it unpacks ({_TOP}/ or the folder above it), class folders train/<class>/ "
    f"and test/<class>/, or "
    "parquet files train-*.parquet and test-*.parquet (in data/)"
)
_IMAGES, _LABELS, _SPLIT = _LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_CLASS_OF = {str(class_id + 1): class_id for class_id in range(len(CLASS_NAMES))}
_SPLIT_OF = {"0": "test", "1": "train"}
_PARQUET_PLACES = ("data",)


def load(root: str, download: bool = False) -> Source:
    """CUB-200-2011 under `root`, in the first layout found there: the archive's, class folders, Hub
    parquet.

    The archive's is `root` or CUB_200_2011 in it, with the official split into 5,994 and 5,794
    images. Class ids are the official numbers less one in every layout. Other numbers of images are
    welcome (a line warns of them), but all 200 classes must have training and test images. Images
    of parquet files are in memory, encoded: 1.2 GB. Where there is no layout at all and `download`,
    the official archive is fetched into `root`. UserError naming stream.root, what was found and
    what is accepted.
    """
    place = locate.directory(root, ARCHIVE, _is_there, download, LAYOUTS)
    refused = partial(_refused, root)
    directory = _directory(place)
    if directory is None:
        hint = locate.left_packed(place) or folder.better_root(place, _looks_right)
        raise refused(f"it holds {folder.shortened(folder.visible(place))}{hint}")
    splits = _splits(root, directory, refused)
    known_classes.check(root, splits, CLASS_NAMES, PUBLISHED, refused)
    return Source("cub200", CLASS_NAMES, splits["train"], splits["test"])


def _splits(root: str, directory: Path, refused: Refused) -> dict[str, ImageSet]:
    if _is_archive(directory):
        return _from_lists(directory, refused)
    if folder.has_layout(directory):
        return known_classes.from_folders(
            {split: directory / split for split in PUBLISHED}, _class_id, refused
        )
    shards = parquet.shards(directory, _PARQUET_PLACES)
    return known_classes.from_parquet(
        root, {split: shards.get(split, []) for split in PUBLISHED}, _class_id, refused
    )


def _refused(root: str, what: str) -> UserError:
    ends = f"accepted are {LAYOUTS}; {locate.way_to_get(ARCHIVE)}"
    return UserError(f"stream.root={root} is no complete CUB-200-2011: {what}; {ends}")


def _directory(place: Path) -> Path | None:
    """Which of `place` and its folder CUB_200_2011 has one of the layouts, complete or not."""
    for candidate in (place / _TOP, place):
        if (
            _is_archive(candidate)
            or folder.has_layout(candidate)
            or parquet.shards(candidate, _PARQUET_PLACES)
        ):
            return candidate
    return None


def _is_there(place: Path) -> bool:
    return _directory(place) is not None


def _looks_right(place: Path) -> bool:
    """Whether `place` has one of the layouts and not only folders train and test of any kind."""
    found = _directory(place)
    if found is None or _is_archive(found) or not folder.has_layout(found):
        return found is not None
    return known_classes.holds(found / "train", _class_id)


def _is_archive(place: Path) -> bool:
    """Whether the archive was unpacked here; if not to its end, the lists may be missing."""
    return any(os.path.isfile(place / name) for name in _LISTS) or known_classes.holds(
        place / "images", _class_id
    )


def _key(name: str) -> str:
    return re.sub(r"[^a-z]+", "_", name.lower()).strip("_")


_CLASS_IDS = {_key(name): class_id for class_id, name in enumerate(CLASS_NAMES)}


def _class_id(name: str) -> int | None:
    """By the name, with or without its number: 001.Black_footed_Albatross or Black footed
    albatross.
    """
    return _CLASS_IDS.get(_key(name))


def _from_lists(place: Path, refused: Refused) -> dict[str, ImageSet]:
    """The images that images.txt names and no others: there are a few more files on disk."""
    lists = {name: key_value.read(place / name, refused) for name in _LISTS}
    _require_same_numbers(place, lists, refused)
    paths = {number: place / "images" / value.text for number, value in lists[_IMAGES].items()}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise refused(
            f"{len(missing):,} of the {len(paths):,} images that {_IMAGES} names are missing, the "
            f"first is "
            f"{missing[0]}; unpack {ARCHIVE.filename} again"
        )
    found: dict[str, list[tuple[int, Path]]] = {split: [] for split in PUBLISHED}
    for number, path in paths.items():
        flag = _checked(lists[_SPLIT][number], _SPLIT_OF, place / _SPLIT, refused)
        label = _checked(lists[_LABELS][number], _CLASS_OF, place / _LABELS, refused)
        found[_SPLIT_OF[flag]].append((_CLASS_OF[label], path))
    return {
        split: ImageSet([target for target, _ in items], [path for _, path in items])
        for split, items in found.items()
    }


def _require_same_numbers(
    place: Path, lists: Mapping[str, Mapping[str, key_value.Value]], refused: Refused
) -> None:
    numbers = dict.fromkeys(number for values in lists.values() for number in values)
    for name, values in lists.items():
        absent = [number for number in numbers if number not in values]
        if absent:
            raise refused(
                f"{place / name} has no line for {len(absent):,} of {len(numbers):,} images that "
                f"other lists have, the "
                f"first is number {absent[0]}; unpack {ARCHIVE.filename} again"
            )


def _checked(
    value: key_value.Value, accepted: Mapping[str, object], path: Path, refused: Refused
) -> str:
    if value.text not in accepted:
        expected = folder.shortened(list(accepted))
        raise refused(
            f"line {value.line} of {path} has {value.text[:80]!r} where one of {expected} is "
            f"expected"
        )
    return value.text
