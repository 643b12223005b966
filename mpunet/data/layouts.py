"""Cases in the layouts that data come in: folders of pairs or thin volumes, with or without a split, and lists of pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mpunet.data.case import PARTS, Case, patient_of
from mpunet.data.pair_list import read_pair_list
from mpunet.io.rplhr import Intensity
from mpunet.io.scans import find_scans

__all__ = ["Source", "files_by_name", "find_cases"]

Source = Mapping[str, str] | str | Path

KINDS = ("thin", "thick", "lung")
# What the subfolders are called: ours, or RPLHR-CT's.
SUBFOLDERS = ({"thin": "thin", "thick": "thick"}, {"thin": "1mm", "thick": "5mm"})


def find_cases(
    source: Source, *, patient_pattern: str | None = None, intensity: Intensity = "auto"
) -> list[Case]:
    """Cases of a folder, of a list or of folders by kind, sorted by name (a list: in its order).

    Args:
        source: one of

            - a folder with the subfolders ``thin`` (or ``1mm``) and, if pairs exist, ``thick`` (or ``5mm``) and ``lung``, with
              files of the same names;
            - a folder of thin volumes, at any depth;
            - a folder with the subfolders ``train``, ``val`` and ``test`` (not all are needed), each one of the above, as RPLHR-CT
              is published: the data's own split;
            - a CSV of pairs, see :func:`mpunet.data.pair_list.read_pair_list`;
            - folders anywhere, ``{"thin": ..., "thick": ..., "lung": ...}``, the last two optional, with files of the same names.
        patient_pattern: regular expression whose first group (or whole match) in a case's name is the patient; by default the
            name itself.
        intensity: handed on to the cases.

    Raises:
        ValueError: if a folder is missing or empty, a file lacks its counterpart, or the pattern matches nothing.
    """
    if isinstance(source, Mapping):
        cases = _by_kind(source)
    elif Path(source).suffix.lower() == ".csv":
        cases = read_pair_list(source)
    else:
        cases = _in_folder(Path(source))
    return [
        case._replace(
            patient=case.patient or patient_of(case.name, patient_pattern), intensity=intensity
        )
        for case in cases
    ]


def files_by_name(folder: str | Path) -> dict[str, Path]:
    """The volumes of :func:`mpunet.io.scans.find_scans` by their path below the folder without ``.nii`` and ``.nii.gz``, sorted."""
    out: dict[str, Path] = {}
    for scan in find_scans(folder):
        name = re.sub(r"\.nii(\.gz)?$", "", scan.relative.as_posix(), flags=re.IGNORECASE)
        if name in out:
            raise ValueError(
                f"Two files have the name {name!r}: {out[name]} and {scan.path}. Remove one of them."
            )
        out[name] = scan.path
    return out


def _in_folder(root: Path) -> list[Case]:
    folders = _kinds(root)
    if folders is not None:
        return _by_kind(folders)
    if not _is_split(root):
        return [Case(name, "", path) for name, path in files_by_name(root).items()]
    return [
        case._replace(name=f"{part}/{case.name}", part=part)
        for part in PARTS
        if (root / part).is_dir()
        for case in _by_kind(_kinds(root / part) or {"thin": str(root / part)})
    ]


def _is_split(root: Path) -> bool:
    """A folder named "test" alone may be anything; one with pairs in it, or beside "train", is a part of a split."""
    found = [part for part in PARTS if (root / part).is_dir()]
    return ("train" in found and len(found) > 1) or any(_kinds(root / part) for part in found)


def _kinds(root: Path) -> dict[str, str] | None:
    """Subfolders by kind; None where there are none."""
    for names in SUBFOLDERS:
        thin, thick = (root / names[kind] for kind in ("thin", "thick"))
        if thin.is_dir():
            found = {"thin": thin, "thick": thick, "lung": root / "lung"}
            return {kind: str(folder) for kind, folder in found.items() if folder.is_dir()}
        if thick.is_dir() and not _is_split(root):
            raise ValueError(
                f"{root} has a subfolder '{thick.name}' but none named '{thin.name}'; put the thin volumes there under the same names."
            )
    return None


def _by_kind(folders: Mapping[str, str]) -> list[Case]:
    if "thin" not in folders or not folders.keys() <= set(KINDS):
        raise ValueError(
            f"Expected folders for 'thin' and perhaps 'thick' and 'lung', got {', '.join(map(repr, folders)) or 'none'}."
        )
    files = {kind: files_by_name(folders[kind]) if kind in folders else {} for kind in KINDS}
    thin = files["thin"]
    for kind in ("thick", "lung"):
        if files[kind] and (odd := sorted(files[kind].keys() ^ thin.keys())):
            raise ValueError(
                f"{len(odd)} cases are not both in {folders['thin']} and in {folders[kind]}, the first of them {odd[0]!r}. "
                "Files of one case have the same name in every folder; where they have not, a CSV of pairs says what belongs together."
            )
    return [
        Case(name, "", path, files["thick"].get(name), files["lung"].get(name))
        for name, path in thin.items()
    ]
