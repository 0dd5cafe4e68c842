"""One image file, decoded as a viewer shows it or refused; and the message about refused ones among many.

Shapes: H rows, W columns, C channels.
"""

import os
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from capsule_sweeps.data.cache import Images

MODES = {1: "L", 3: "RGB"}  # channels → Pillow's name
# Raster formats that Pillow decodes itself: others start programs (EPS), or are containers. The last has no signature.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "PCX", "TGA")
MAX_SIDE = 4096  # pixels
CONVERTIBLE = ("L", "RGB", "LA", "RGBA", "P", "PA", "1", "CMYK")
BITS = {"I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}  # Pillow's convert would cut above 255
NAMED = 20  # files in a message


class Kind(NamedTuple):
    """What the header of an image file states."""

    width: int
    height: int
    mode: str

    def __str__(self) -> str:
        bits = f" ({BITS[self.mode]} bits)" if self.mode in BITS else ""
        return f"{self.width}x{self.height} {self.mode}{bits}"

    @property
    def usable(self) -> bool:
        """Whether an image is square, not too large, and gray or RGB."""
        return self.width == self.height <= MAX_SIDE and self.mode in MODES.values()


class Refused(ValueError):
    """Why a file cannot be used, whatever its size."""


def look(path: Path) -> Kind:
    """Size and mode by the header, without decoding. Raises Refused."""
    with _opened(path) as image:
        return _kind(image)


def decode(path: Path, wanted: Kind) -> tuple[Kind, Images | None]:
    """Size and mode, and the pixels (H, W) or (H, W, C) as a viewer shows them, of a file that is as wanted.

    Nothing of another one is decoded. Raises Refused for a file of which only a part would count.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        if (kind := _kind(image)) != wanted:
            return kind, None
        image.load()
        shown = ImageOps.exif_transpose(image) or image
        return _kind(shown), np.asarray(shown)


def _kind(image: Any) -> Kind:
    return Kind(image.size[0], image.size[1], image.mode)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file whose header was read. Whatever goes wrong in Pillow, also while it decodes, is raised as Refused."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if (lost := _lost(image)) is not None:
                    raise Refused(f"has {lost}, which would be lost")
                yield image
    except Refused:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Refused(f"has more than {MAX_SIDE} pixels a side") from error
    except Exception as error:  # Pillow has many for a broken file
        raise Refused("cannot be read as an image") from error


def _lost(image: Any) -> str | None:
    """What Pillow would silently drop when an opened file is converted to 8 bits of gray or RGB."""
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":  # a camera's JPEG with a preview
        return f"{frames} frames"
    if "transparency" in image.info:
        return "transparency"
    raw = " ".join(str(tile[3]) for tile in image.tile)  # how the file stores pixels: 'RGB;16B'
    maxima = re.findall(r"\d+", raw) if image.format == "PPM" else []
    if re.search(r"\b(L|LA|RGB|RGBX|RGBA);16", raw) or any(int(largest) > 255 for largest in maxima):
        return "more than 8 bits per channel"
    return None


def check_alike(found: Mapping[Path, Kind | Refused], wanted: Kind, root: Path) -> None:
    """Raises ValueError, one sentence, for files that were refused or are not as wanted: all of them, by name.

    Where most images are alike, but not as wanted, the odd ones out are named.
    """
    kinds = Counter(kind for kind in found.values() if isinstance(kind, Kind))
    usual = wanted
    for frequent, number in kinds.most_common(1):
        if frequent.usable and number > kinds[wanted]:
            usual = frequent
    wrong = {path: kind for path, kind in found.items() if kind != usual}
    if usual != wanted and not kinds[wanted]:
        raise ValueError(
            f"{len(found) - len(wrong):,} of {len(found):,} images in {root} are {usual}, but dataset.image_size="
            f"{wanted.width} and dataset.channels={channels_of(wanted)} ask for {wanted}; set dataset.image_size="
            f"{usual.width} dataset.channels={channels_of(usual)}, or convert them."
        )
    if not wrong:
        return
    convertible = [path for path, kind in wrong.items() if isinstance(kind, Kind) and kind.mode in CONVERTIBLE]
    command = f"; this converts {'it' if len(wrong) == 1 else 'images'}: {_command(usual)} " if convertible else "."
    if len(wrong) == 1:
        ((path, kind),) = wrong.items()
        asked = f"is {kind}, but " if isinstance(kind, Kind) else str(kind)
        if isinstance(kind, Kind):
            known = f"dataset.image_size={wanted.width} and dataset.channels={channels_of(wanted)} ask for {wanted}"
            asked += known if usual == wanted else f"the other images are {usual}"
        verb = "replace" if asked.startswith("cannot") else "convert"
        raise ValueError(
            f"{text(path)} {asked}; {verb} or remove it{command}{shlex.quote(text(path)) if convertible else ''}"
        )
    named = [
        f"{text(path.relative_to(root))} {'is ' if isinstance(kind, Kind) else ''}{kind}"
        for path, kind in list(wrong.items())[:NAMED]
    ]
    more = f"; and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
    raise ValueError(
        f"{len(wrong):,} of {len(found):,} images in {root} cannot be used, since all must be {usual}: "
        f"{'; '.join(named)}{more}; convert, replace or remove them{command}{'FILES' if convertible else ''}"
    )


def channels_of(kind: Kind) -> int:
    """1 for gray, 3 for RGB."""
    return next(number for number, mode in MODES.items() if mode == kind.mode)


def _command(kind: Kind) -> str:
    """A shell command that converts images to this kind; images that are not square are cropped."""
    image = f'ImageOps.exif_transpose(Image.open(f)).convert("{kind.mode}")'
    program = f"[ImageOps.fit({image}, ({kind.width}, {kind.height})).save(f) for f in sys.argv[1:]]"
    return f"python -c 'import sys; from PIL import Image, ImageOps; {program}'"


def text(path: Path | str) -> str:
    """A path as text; bytes that are not UTF-8 become question marks."""
    return os.fsencode(path).decode(errors="replace")
