"""docs/pacs.md: its commands are run as they stand there, against archives on this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mpunet.phantom import chest_phantom

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pacs.md").read_text()
SEND = ROOT / "examples" / "pacs" / "send.py"
PROCESS = ROOT / "examples" / "pacs" / "process.sh"
STUDY, PATIENT, NAME = "1.2.3", "42", "Doe^Jane"  # of the made series, and in the page


def blocks(heading):
    """The shell commands under a heading of the page, each block as one text."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(r"^```bash\n(.*?)^```", section, re.M | re.S)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(until, what):
    """Wait until a condition holds; ``what`` is called for the message if it never does."""
    end = time.monotonic() + 300
    while not until():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def bash():
    """Runs commands in bash; what they leave in the background ends with the test, come what may."""
    groups = []

    def run(commands, status=0, cwd=ROOT, seconds=300, **variables):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", "-euc", commands],
            cwd=cwd,
            env={**os.environ, "PATH": path, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        groups.append(process.pid)
        printed, _ = process.communicate(timeout=seconds)
        assert process.returncode == status, f"{commands}\n{printed}"
        return printed

    yield run
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.fixture
def settings(tmp_path):
    """The page's variables, with this test's folder and ports."""
    (block,) = blocks("Names and ports")
    found = {
        "NODE": str(tmp_path / "node"),
        "NODE_AET": "MPUNET",
        "NODE_PORT": str(free_port()),
        "PACS": "127.0.0.1",
        "PACS_AET": "ARCHIVE",
        "PACS_PORT": str(free_port()),
    }
    assert set(re.findall(r"(\w+)=", block)) == set(found)
    (tmp_path / "node" / "incoming").mkdir(parents=True)
    return {**found, "STUDY": STUDY, "QUIET": "1"}


@pytest.fixture
def thick(tmp_path, monkeypatch):
    """A thick series of a synthetic chest, as files in a folder."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "io" / "dicom")
    from made import write_series

    hu = chest_phantom(0, shape=(9, 30, 32), spacing=(5, 10, 10)).thin
    paths = write_series(tmp_path / "thick", hu, pixel=(10, 10))
    first = pydicom.dcmread(paths[0])
    assert (first.StudyInstanceUID, first.PatientID, first.PatientName) == (STUDY, PATIENT, NAME)
    return tmp_path / "thick"


def contents(folder):
    """The data sets of a folder's files, and the same as bytes, by SOPInstanceUID."""
    found = {}
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        start = 144 + dataset.file_meta[0x0002, 0x0000].value
        found[dataset.SOPInstanceUID] = dataset, path.read_bytes()[start:]
    return found


def results(node):
    """The one thin series that was sent, and its UID; no log or name tells who the patient is."""
    thin = next((node / "thin").iterdir())
    log = node / "process.log"
    wait(lambda: {"sent", "failed"} & set(os.listdir(thin)), log.read_text)
    assert re.search(rf"{thin.name}: 1 series sent", log.read_text())
    record = json.loads((thin / "manifest.jsonl").read_text())
    (series,) = (path for path in thin.iterdir() if path.is_dir())
    assert len(list(series.iterdir())) == 41
    told = [path.read_text() for path in [*node.glob("*.log"), thin / "manifest.jsonl"]]
    told += [str(path.relative_to(node)) for path in node.rglob("*")]
    assert not any(part in text for part in NAME.split("^") for text in told)
    return series, record["series"]


def ended(node):
    """Whether the processes whose numbers the page's commands wrote are gone."""
    return not any(
        Path(f"/proc/{path.read_text().strip()}/cmdline").exists() for path in node.glob("*.pid")
    )


def test_with_pynetdicom(tmp_path, settings, thick, untrained, bash):
    (tmp_path / "archive.ini").write_text(
        "[DEFAULT]\nae_title: ARCHIVE\nmax_pdu: 16382\nbind_address: 127.0.0.1\n"
        "acse_timeout: 30\ndimse_timeout: 30\nnetwork_timeout: 30\n"
        f"port: {settings['PACS_PORT']}\ninstance_location: {tmp_path / 'archive'}\n"
        f"database_location: {tmp_path / 'archive.sqlite'}\n"
    )
    bash("python -m pynetdicom qrscp -c archive.ini > archive.log 2>&1 &", cwd=tmp_path)
    wait(lambda: answers(settings["PACS_PORT"]), (tmp_path / "archive.log").read_text)
    bash(f"python -m pynetdicom storescu -r $PACS $PACS_PORT {thick}", **settings)
    fetch, process, look = blocks("With pynetdicom")
    printed = bash(fetch, **settings)
    assert "Get SCP Result: 0x0000 (Success)" in printed
    assert "Completed: 9, Failed: 0" in printed
    predict = f"mpunet predict --quiet --device cpu --checkpoint {untrained}"
    bash(process, **settings, PREDICT=predict)
    node = Path(settings["NODE"])
    wait((node / "thin").exists, (node / "process.log").read_text)
    thin, uid = results(node)
    assert uid in bash(look, **settings)
    wait(lambda: ended(node), lambda: "process.sh does not end")
    bash(
        f"python -m pynetdicom getscu -S -k QueryRetrieveLevel=SERIES -k StudyInstanceUID=$STUDY "
        f"-k SeriesInstanceUID={uid} -od {tmp_path / 'back'} $PACS $PACS_PORT",
        **settings,
    )
    sent, back = contents(thin), contents(tmp_path / "back")
    assert {key: dataset for key, (dataset, _) in back.items()} == {
        key: dataset for key, (dataset, _) in sent.items()
    }


def need(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def dcmqrscp(folder, settings):
    need("dcmqrscp")
    (folder / "archive").mkdir()
    (folder / "archive.cfg").write_text(
        f"NetworkTCPPort = {settings['PACS_PORT']}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\n"
        f"mpunet = (MPUNET, localhost, {settings['NODE_PORT']})\n"
        "HostTable END\nVendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
        f"ARCHIVE {folder / 'archive'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    return "dcmqrscp -c archive.cfg"


def orthanc(folder, settings):
    need("Orthanc", "curl")
    config = {
        "StorageDirectory": str(folder / "archive"),
        "IndexDirectory": str(folder / "archive"),
        "HttpPort": free_port(),
        "DicomPort": int(settings["PACS_PORT"]),
        "DicomAet": "ARCHIVE",
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"mpunet": ["MPUNET", "127.0.0.1", int(settings["NODE_PORT"])]},
    }
    (folder / "archive.json").write_text(json.dumps(config))
    settings["ORTHANC"] = f"http://127.0.0.1:{config['HttpPort']}"
    return "Orthanc archive.json"


@pytest.mark.slow  # the packaged network, and tools that are not in every system
@pytest.mark.parametrize("archive", [dcmqrscp, orthanc])
def test_with_dcmtk(archive, tmp_path, settings, thick, bash):
    need("storescu", "storescp", "movescu", "findscu", "echoscu", "getscu")
    command = archive(tmp_path, settings)
    bash(f"{command} > archive.log 2>&1 &", cwd=tmp_path)
    wait(lambda: answers(settings["PACS_PORT"]), (tmp_path / "archive.log").read_text)
    bash(f"storescu -R -aec $PACS_AET +sd $PACS $PACS_PORT {thick}", **settings)
    connect, start, fetch, look, stop = blocks("With dcmtk")
    assert bash(connect, **settings) == ""
    bash(start, **settings)
    node = Path(settings["NODE"])
    wait(lambda: answers(settings["NODE_PORT"]), (node / "storescp.log").read_text)
    assert STUDY in bash(fetch, **settings)
    wait((node / "thin").exists, (node / "process.log").read_text)
    thin, uid = results(node)
    printed = bash(look, **settings)
    assert uid in printed
    # dcmqrscp does not know the descriptions of its series.
    assert ("mpunet 1 mm (synthetic)" in printed) == ("ORTHANC" in settings)
    bash(stop, **settings)
    wait(lambda: ended(node), lambda: "storescp and process.sh do not end")
    get = (
        "mkdir $TO; getscu +B -S -aec $PACS_AET -k QueryRetrieveLevel=SERIES "
        f"-k StudyInstanceUID=$STUDY -k SeriesInstanceUID={uid} -od $TO $PACS $PACS_PORT"
    )
    bash(get, **settings, TO=str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(thin)  # data sets and their bytes
    if shutil.which("dciodvfy"):
        assert complaints(thin, bash) <= complaints(thick, bash)
    if "ORTHANC" in settings:
        (remove,) = blocks("Remove a result")
        bash(remove, **settings)
        assert uid not in bash(look, **settings)
        bash(get, **settings, TO=str(tmp_path / "none"))
        assert not list((tmp_path / "none").iterdir())
    (old,) = blocks("What `process.sh` does")
    os.utime(node / "incoming" / f"study_{STUDY}", (0, 0))
    bash(old, **settings)
    assert list((node / "incoming").iterdir()) == []
    assert len(list((node / "thin").iterdir())) == 1


def complaints(folder, bash):
    """What dciodvfy calls an error in any file of a series."""
    printed = bash(f"for file in {folder}/*; do dciodvfy -new $file || true; done")
    return {line for line in printed.splitlines() if line.startswith("Error")}


@pytest.mark.slow  # downloads and installs gigabytes
def test_install_without_internet(tmp_path, bash):
    for name in ("mpunet", "examples/pacs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    wheels, install = blocks("Install behind a firewall")
    try:
        bash(wheels, cwd=tmp_path, seconds=1800)
    except AssertionError as error:
        if "No matching distribution" in str(error):
            pytest.skip("needs a package index")
        raise
    printed = bash(install, cwd=tmp_path, seconds=1800, PYTHONPATH="", PIP_CONFIG_FILE=os.devnull)
    assert "5 mm to 1 mm (comes with mpunet)" in printed
    assert str(tmp_path / "venv") in printed


def test_the_archive_refuses_a_file(thick, bash):
    """Of what the archive does not take, the exit status of send.py tells."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import CTImageStorage

    port = free_port()
    send = f"python {SEND} --pacs-aet ARCHIVE 127.0.0.1 {port} {thick}"
    assert f"no association with ARCHIVE at 127.0.0.1:{port}" in bash(send, status=1)
    taken, refused = [], [3, None]

    def store(event):
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0xA700 if len(taken) == refused[0] else 0x0000

    archive = AE("ARCHIVE")
    archive.add_supported_context(CTImageStorage)
    server = archive.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    try:
        assert re.search(r"00\d\.dcm: not taken, status A700\n$", bash(send, status=1))
        assert len(set(taken)) == 3
        taken.clear()
        refused.pop(0)
        assert bash(send) == ""
        assert len(set(taken)) == 9
    finally:
        server.shutdown()


def test_late_slices_failures_and_an_archive_that_is_away(tmp_path, bash):
    """What process.sh does, with copies in the place of predictions and of the archive."""
    node, archive = tmp_path / "node", tmp_path / "archive"
    first, bad = node / "incoming" / "first", node / "incoming" / "bad"
    first.mkdir(parents=True)
    (first / "1").touch()
    (tmp_path / "full").write_text("for the first tries")
    (tmp_path / "predict.sh").write_text(
        'echo "$1" >> tries; [[ -s full ]] && exit 3; mkdir -p "$2/series"; '
        'cp "$1"/* "$2/series"; case $1 in *bad) exit 2;; *) exit 1;; esac\n'
    )
    bash(
        f"bash {PROCESS} node cp -rt archive > process.log 2>&1 &",
        cwd=tmp_path, QUIET="0.2", PREDICT="bash predict.sh",
    )  # fmt: skip
    log = tmp_path / "process.log"

    def logged(text):
        wait(lambda: text in log.read_text(), log.read_text)

    logged("first: the disk is full, another try follows")
    assert [path.name for path in (node / "thin" / "first").iterdir()] == ["begun"]
    (tmp_path / "full").unlink()
    logged("first: could not be sent, another try follows")
    assert not (node / "thin" / "first" / "sent").exists()
    archive.mkdir()
    logged("first: 1 series sent")
    assert [path.name for path in (archive / "series").iterdir()] == ["1"]
    (first / "2").touch()
    logged("first: slices came late, all is made again")
    wait((archive / "series" / "2").exists, log.read_text)
    bad.mkdir()
    (bad / "3").touch()
    logged("bad: failed with exit status 2")
    time.sleep(1)  # several rounds
    assert (tmp_path / "tries").read_text().count("bad") == 1
    assert (node / "thin" / "bad" / "failed").exists()
    assert sorted(path.name for path in (archive / "series").iterdir()) == ["1", "2"]
