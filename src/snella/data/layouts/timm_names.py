"""Data sets by timm's names: `hfds/NAME`, `torch/NAME[:FOLDER]`, `wds/FOLDER`.

timm's own data set class replaces an image that it cannot read by the next one. So only its readers are used, and
images are opened as everywhere else. Entries are named "SPLIT#INDEX".
"""

from __future__ import annotations

from snella.data.listing import Listing
from snella.errors import UserError

PREFIXES = ("hfds", "torch", "wds")


def is_timm_name(data: str) -> bool:
    return data.partition("/")[0].lower() in PREFIXES and "/" in data


def timm_source(data: str) -> Listing:
    """Read a data set by timm's name.

    Raises:
        UserError: an unknown name, a missing package or folder, labels that do not fit the classes.
    """
    from snella.data.layouts import hub_datasets, torchvision_datasets, webdataset

    prefix, _, name = data.partition("/")
    if not name:
        raise UserError(f"{data} names no data set; write {prefix}/NAME")
    readers = {"hfds": hub_datasets.read, "torch": torchvision_datasets.read, "wds": webdataset.read}
    return readers[prefix.lower()](name)
