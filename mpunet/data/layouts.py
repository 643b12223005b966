"""Find cases in the supported data layouts.

These are folders of pairs or of thin volumes, with or without a split, and CSV lists of pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from mpunet.data.case import PARTS, Case, patient_of
from mpunet.data.pair_list import read_pair_list
from mpunet.io.rplhr import Intensity
from mpunet.io.scans import find_scans
from mpunet.io.volume import without_nifti_suffix

__all__ = ["Source", "files_by_name", "find_cases", "is_one_scan"]

Source = Mapping[str, str] | str | Path

KINDS = ("thin", "thick", "lung")
# Names of the subfolders: ours, and those of RPLHR-CT.
SUBFOLDERS = ({"thin": "thin", "thick": "thick"}, {"thin": "1mm", "thick": "5mm"})


def find_cases(
    source: Source, *, patient_pattern: str | None = None, intensity: Intensity = "auto"
) -> list[Case]:
    """Find the cases of a source, sorted by name; the cases of a CSV keep its order.

    Args:
        source: one of

            - a folder with the subfolders ``thin`` (or ``1mm``) and optionally ``thick`` (or
              ``5mm``) and ``lung``; the files of a case have the same name in each;
            - a folder of thin volumes, searched recursively;
            - a folder with the subfolders ``train``, ``val`` and ``test`` (some may be missing),
              each in one of the layouts above. This is the layout of RPLHR-CT, and the folders are
              used as the split;
            - a CSV of pairs, see :func:`mpunet.data.pair_list.read_pair_list`;
            - separate folders by kind, ``{"thin": ..., "thick": ..., "lung": ...}``, the last two
              optional; the files of a case have the same name in each.
        patient_pattern: regular expression that finds the patient in a case's name: its first
            group, or the whole match if it has no group. By default the patient is the case's name.
            The folder of a part ("train/") does not belong to the name here.
        intensity: meaning of intensities within [0, 1]; stored in each case.

    Raises:
        ValueError: if a folder is missing or empty, a file has no counterpart in another folder, or
            ``patient_pattern`` does not match a name.
    """
    if isinstance(source, Mapping):
        cases = _by_kind(source)
    elif Path(source).suffix.lower() == ".csv":
        cases = read_pair_list(source)
    else:
        cases = _in_folder(Path(source))
    return [
        case._replace(
            patient=case.patient or patient_of(case.name_in_part, patient_pattern),
            intensity=intensity,
        )
        for case in cases
    ]


def files_by_name(folder: str | Path) -> dict[str, Path]:
    """Map names to the volumes of a folder and its subfolders, sorted by path.

    A name is the path relative to the folder, without ``.nii`` or ``.nii.gz``. The volumes are
    the NIfTI files and DICOM series that :func:`mpunet.io.scans.find_scans` finds; open their paths
    with :mod:`mpunet.io.scan_file`.

    Raises:
        ValueError: if two files have the same name.
    """
    out: dict[str, Path] = {}
    for scan in find_scans(folder):
        name = without_nifti_suffix(scan.relative.as_posix())
        if name in out:
            raise ValueError(
                f"Two files have the name {name!r}: {out[name]} and {scan.path}. "
                "Remove one of them."
            )
        out[name] = scan.path
    return out


def is_one_scan(source: str | Path, found: Collection[Path]) -> bool:
    """Return whether a source is itself a scan: a file, or a folder with the files of one series.

    Args:
        source: file or folder.
        found: paths of its scans. That of a series whose files are in ``source`` itself ends with
            its UID and does not exist.
    """
    return Path(source).is_file() or (len(found) == 1 and not any(p.exists() for p in found))


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
    """Return whether the subfolders of ``root`` are the parts of a split.

    A single subfolder "test" may have another meaning. It is taken for a part of a split if it
    contains pairs or if a subfolder "train" exists too.
    """
    found = [part for part in PARTS if (root / part).is_dir()]
    return ("train" in found and len(found) > 1) or any(_kinds(root / part) for part in found)


def _kinds(root: Path) -> dict[str, str] | None:
    """Return the subfolders by kind; None if ``root`` has no such subfolders."""
    for names in SUBFOLDERS:
        thin, thick = (root / names[kind] for kind in ("thin", "thick"))
        if thin.is_dir():
            found = {"thin": thin, "thick": thick, "lung": root / "lung"}
            return {kind: str(folder) for kind, folder in found.items() if folder.is_dir()}
        if thick.is_dir() and not _is_split(root):
            raise ValueError(
                f"{root} has a subfolder '{thick.name}' but none named '{thin.name}'; "
                "put the thin volumes there under the same names."
            )
    return None


def _by_kind(folders: Mapping[str, str]) -> list[Case]:
    if "thin" not in folders or not folders.keys() <= set(KINDS):
        raise ValueError(
            "Expected folders for 'thin' and perhaps 'thick' and 'lung', "
            f"got {', '.join(map(repr, folders)) or 'none'}."
        )
    files = {kind: files_by_name(folders[kind]) if kind in folders else {} for kind in KINDS}
    thin = files["thin"]
    for kind in ("thick", "lung"):
        if files[kind] and (odd := sorted(files[kind].keys() ^ thin.keys())):
            raise ValueError(
                f"{len(odd)} cases are not both in {folders['thin']} and in {folders[kind]}, "
                f"the first of them {odd[0]!r}. Files of one case must have the same name in every "
                "folder; if they do not, list the files that belong together in a CSV of pairs."
            )
    return [
        Case(name, "", path, files["thick"].get(name), files["lung"].get(name))
        for name, path in thin.items()
    ]
