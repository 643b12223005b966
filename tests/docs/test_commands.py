"""Every command in README and docs is run on small data, or listed with the reason why not.

The commands of a page run one after the other, in this process, in a folder that has the files they
name. ``SMALLER`` adds options that make them fast; the last of an option counts.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import PAGES, ROOT, blocks, command_lines, name_of, python_file

import mpunet.phantom
from mpunet.__main__ import main
from mpunet.benchmark import Benchmark
from mpunet.benchmark.measure import measure
from mpunet.phantom import phantom_image
from mpunet.weights import packaged

# Pages whose commands another test runs, or nobody can run here.
OTHERS = {
    "docs/cluster.md": "needs SLURM and nodes; tests/examples/test_cluster.py runs the scripts",
    "docs/container.md": "needs an engine; tests/release/test_container.py runs the build steps",
    "docs/export.md": "tests/export exports each format and runs the bundle as the page says",
    "docs/pacs.md": "tests/examples/test_pacs.py runs every command against archives",
    "docs/public_pairs.md": "tests/examples/test_public_pairs.py runs every command",
    "examples/peers/README.md": "needs clones of others' code; see tests/examples/test_peers.py",
}
# Commands on the other pages that do not run, by their beginning.
NOT_RUN = {
    "make": "sets up an environment; the workflows run these targets",
    "pip install": "needs internet; tests/release/check_wheel.py installs the wheel",
    "export MPUNET_CT": "of the shell; the test sets the variable",
    "mkdir -p test": "of the shell; the test makes the folder",
    "cp $MPUNET_CT/val": "of the shell; the test fills the folder",
    "git show": "needs the history; the test has a file of that name",
    "jupyter": "a server that does not end; tests/examples/test_notebooks.py runs the notebooks",
    "jq": "shows a manifest that a command wrote",
    "/usr/bin/time": "measures a command that another page runs",
    "tensorboard": "a server that does not end",
    "python examples/get_data.py": "downloads; tests/examples/test_get_data.py",
    "python examples/calibrate.py": "takes a minute: tests/examples/test_calibrate.py",
    "python examples/automatic_reader.py": "takes minutes; tests/reader_study has the reader",
    "python tests/benchmarks/": "measures for minutes: `make bench`",
    "mpunet predict scans thin --device cuda": "needs two GPUs",
    "mpunet predict scans thin --devices 2": "tests/inference/test_writer.py runs two processes",
    "mpunet predict scan.nii.gz thin --dicom_from": "tests/io/dicom/test_dicom_template.py",
    "mpunet predict scans thin --dicom_from": "tests/io/dicom/test_dicom_template.py",
    "mpunet fit --config examples/mpunet.yaml --data.data_dir pairs --devices 4": "needs four GPUs",
    "mpunet fit --config examples/mpunet.yaml --data.data_dir pairs --model.objective."
    "feature_weights": "needs VGG-16; tests/losses has feature matching",
}
SLOW = [
    f"docs/{name}.md" for name in ("choices", "fine_tune", "guide", "model_card", "tutorial_train")
]

TINY = ["--model.net.widths", "[2,2,2,2,2,2]", "--model.net.stem_width", "2"]
TINY += ["--model.net.head_width", "1"]
AGAIN = ["--existing", "overwrite"]
SMALLER = {
    "benchmark": ["--rows", "examples/table1/01_bicubic.yaml", "--vgg_weights", "null"],
    "check": ["--workers", "1"],
    "evaluate": ["--report", "false"],
    "fit": shlex.split(
        "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.val_check_interval 2 "
        "--trainer.precision 32-true --trainer.log_every_n_steps 1 --trainer.callbacks null "
        "--data.crop '[32, 32]' --data.batch_size 1 --data.crops_per_epoch 4 --data.num_workers 0 "
        "--model.objective.feature 0 --inference.stride fast"
    ),
    "predict": ["--device", "cpu", *AGAIN],
    "simulate": AGAIN,
    "test": ["--trainer.accelerator", "cpu"],
}
# Where a command says that it writes.
OUTPUT = {"predict": 2, "simulate": 2, "export": 2}


def reason_not_to_run(page, command):
    line = " ".join(command)
    found = [reason for beginning, reason in NOT_RUN.items() if line.startswith(beginning)]
    return OTHERS.get(name_of(page)) or next(iter(found), None)


def to_run(page):
    return [words for words in command_lines(page) if reason_not_to_run(page, words) is None]


@pytest.fixture(scope="module")
def data(tmp_path_factory, untrained):
    """A folder with what the commands of the pages name: phantoms of 32 x 40 pixels."""
    folder = tmp_path_factory.mktemp("data")
    thin, thick = folder / "truth" / "p3.nii.gz", folder / "scans" / "p3.nii.gz"
    for seed in range(4):
        image = phantom_image(seed, shape=(41, 32, 40), spacing=(1.0, 8.0, 8.0))
        for kind in ("pairs/thin", "RPLHR-CT/test/1mm", "truth" if seed == 3 else "train"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / kind / f"p{seed}.nii.gz")
    for source, target in {"pairs/thin": "pairs/thick", "truth": "scans"}.items():
        assert main(["simulate", str(folder / source), str(folder / target), "--ratio", "5"]) == 0
    shutil.copytree(folder / "pairs/thick", folder / "RPLHR-CT/test/5mm")
    for part in ("train", "val"):
        shutil.copytree(folder / "RPLHR-CT/test", folder / "RPLHR-CT" / part)
        for file in [*(folder / "RPLHR-CT" / part).rglob("*.nii.gz")]:
            file.rename(file.with_name(f"{part}_{file.name}"))  # no patient is in two parts
    for name in ("val", "test", "THIN", "thin_scans", "true_thin", "ct/val"):
        shutil.copytree(folder / "truth", folder / name)
    shutil.copytree(folder / "train", folder / "ct/train")
    for name in ("thick", "study"):
        shutil.copytree(folder / "scans", folder / name)
    shutil.copytree(folder / "pairs", folder / "DATA")
    for name in ("truth.nii.gz", "thin.nii.gz"):
        shutil.copy(thin, folder / name)
    for name in ("thick.nii.gz", "scan.nii.gz"):
        shutil.copy(thick, folder / name)
    image = nib.load(thin)
    (folder / "thin").mkdir()
    voxels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(voxels + np.int16(7), image.affine), folder / "thin" / thin.name)
    nib.save(nib.Nifti1Image(np.full_like(voxels, 9), image.affine), folder / "thin_error.nii.gz")
    for name in ("X.ckpt", "last.ckpt"):
        shutil.copy(untrained, folder / name)
    shutil.copy(packaged()["packaged"], folder / "network.safetensors")
    (folder / "scanner.csv").write_text("mm,weight\n-5,0\n0,1\n5,0\n")
    (folder / "notes.yaml").write_text("data: phantoms\n")
    (folder / "standard.csv").write_text("case,x,y,z,diameter\np3,10,20,30,8\n")
    (folder / "findings.csv").write_text(
        "reader,condition,case,x,y,z,diameter\nA,thick,p3,,,,\nA,mpunet,p3,11,20,30,7\n"
    )
    return folder


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """A copy of the folder, with the examples, as the current one."""
    place = tmp_path / "place"
    shutil.copytree(data, place)
    (place / "examples").mkdir()
    for path in (ROOT / "examples").iterdir():
        if path.name != "data":
            (place / "examples" / path.name).symlink_to(path)
    crop = ROOT / "examples" / "data" / "lesion_1.25mm.nii.gz"
    (place / "examples" / "data").mkdir()
    nib.save(nib.load(crop).slicer[16:80, 16:80, :41], place / "examples" / "data" / crop.name)
    (place / "mpunet" / "packaged").mkdir(parents=True)  # where the model card exports to
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("MPUNET_CT", str(place / "ct"))
    monkeypatch.setenv("MPUNET_CACHE", str(data.parent / "cache"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Benchmark, "_python", staticmethod(in_this_process))
    return place


def in_this_process(words, log):
    """What a benchmark starts as ``python -m``."""
    assert words[:2] == ["-m", "mpunet.benchmark.measure"]
    task = json.loads(Path(words[2]).read_text())
    (Path(task["output"]) / "result.json").write_text(json.dumps(measure(task)))


def adapt(place, page):
    """Add the files that pages give as blocks, and what a name means on this page."""
    network = python_file(ROOT / "docs" / "tutorial_network.md", "mynet.py")
    (place / "mynet.py").write_text(network)
    (place / "mine.yaml").write_text("model: {lr: 1.0e-3}\n")
    if name_of(page) == "docs/benchmark.md":
        (place / "mine.yaml").write_text(blocks(page, "yaml")[0])
    if name_of(page) == "docs/tutorial_train.md":
        (place / "phantoms.py").write_text(python_file(page, "phantoms.py"))
    if name_of(page) == "docs/guide.md":  # a folder of thin scans of several patients
        shutil.rmtree(place / "scans")
        for number, path in enumerate(sorted((place / "pairs" / "thin").iterdir())):
            (place / "scans").mkdir(exist_ok=True)
            shutil.copy(path, place / "scans" / f"LIDC-IDRI-{number:04}.nii.gz")
    if name_of(page) == "docs/start.md":  # the folders that its commands make
        shutil.rmtree(place / "thick")
        shutil.rmtree(place / "thin")
    if name_of(page) == "docs/model_card.md":  # slices 1.25 mm apart, as in its scans
        image = phantom_image(3, shape=(41, 32, 40), spacing=(1.25, 8.0, 8.0))
        nib.save(image, place / "ct" / "val" / "p3.nii.gz")
        shutil.copy(packaged()["packaged"], place / "earlier.safetensors")
    if name_of(page) == "docs/fine_tune.md":  # test cases with their thick slices
        shutil.rmtree(place / "test")
        shutil.copytree(place / "pairs", place / "test")
        shutil.rmtree(place / "thin")


def run_mpunet(words):
    command = words[0]
    more = SMALLER.get(command, [])
    if {"--model.net.ratio", "pairs"} <= set(words):  # the pairs here are of ratio 5
        more = [*more, "--data.data_dir", "pairs/thin"]
    if command == "fit" and not {"--init_from", "--model.net", "--ckpt_path"} & set(words):
        more = [*more, *TINY]
    try:
        status = main([*words, *more])
    except SystemExit as ended:  # such as --print_config
        status = ended.code or 0
    assert status == 0
    outputs = [words[OUTPUT[command]]] if command in OUTPUT else []
    outputs += re.findall(r"--(?:output|output_dir|checkpoint\.dirpath) (\S+)", " ".join(words))
    for output in outputs:
        assert os.path.exists(output), output


def run_python(words, monkeypatch):
    if words[0] == "-c":
        exec(compile(words[1], "command", "exec"), {})
        return
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", words)
        # Of the size of the others here.
        small = {"shape": (41, 32, 40), "spacing": (1.0, 8.0, 8.0)}
        patch.setattr(
            mpunet.phantom, "phantom_image", lambda seed, **_: phantom_image(seed, **small)
        )
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise


def marked(page):
    slow = [pytest.mark.slow] if name_of(page) in SLOW else []
    return pytest.param(page, id=name_of(page), marks=slow)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's, about small data
@pytest.mark.parametrize("page", [marked(page) for page in PAGES if to_run(page)])
def test_commands_of_the_page_run(page, place, monkeypatch, capfd):
    adapt(place, page)
    for words in to_run(page):
        words = [os.path.expandvars(word) for word in words]
        try:
            assert words[0] in ("mpunet", "python"), "neither run nor in NOT_RUN with a reason"
            if words[0] == "mpunet":
                run_mpunet(words[1:])
            else:
                run_python(words[1:], monkeypatch)
        except (Exception, SystemExit) as error:
            printed = capfd.readouterr()
            raise AssertionError(
                f"{name_of(page)}: {shlex.join(words)}\n{printed.out}\n{printed.err}"
            ) from error


def test_every_entry_is_needed():
    lines = {name_of(page): [" ".join(words) for words in command_lines(page)] for page in PAGES}
    assert [page for page in OTHERS if not lines.get(page)] == []
    rest = [line for page in lines if page not in OTHERS for line in lines[page]]
    assert [x for x in NOT_RUN if not any(line.startswith(x) for line in rest)] == []
    for reason in (*OTHERS.values(), *NOT_RUN.values()):
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason):
            assert (ROOT / path).exists(), path


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for program, *rest in command_lines(page):
            if program == "make":
                assert {word for word in rest if "=" not in word} <= targets
