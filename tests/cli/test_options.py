"""Short options, and help that fits on a screen."""

import os
import subprocess
import sys
import time

import pytest

from mpunet.__main__ import COMMANDS, main
from mpunet.cli.options import COMMANDS as LIGHTNING
from mpunet.cli.options import closest, help_text, translate

SAME = [
    (["predict", "in", "out"], ["predict", "--data.predict_dir=in", "--writer.output_dir=out"]),
    (
        ["predict", "--fast", "in", "--inference.tile", "256", "out"],
        ["predict", "--inference.stride=fast", "--inference.tile=256"]
        + ["--data.predict_dir=in", "--writer.output_dir=out"],
    ),
    (["predict", "in", "--checkpoint", "x.ckpt"], ["predict", "--ckpt_path=x.ckpt", "--data.predict_dir=in"]),
    (["predict", "--thin_spacing=1.5"], ["predict", "--inference.thin_spacing=1.5"]),
    (["predict", "--device", "cpu", "--devices", "2"], ["predict", "--trainer.accelerator=cpu", "--trainer.devices=2"]),
    (["predict", "--existing", "error", "--check"], ["predict", "--writer.existing=error", "--writer.check=true"]),
    (["predict", "--limit_memory", "8", "--quiet"], ["predict", "--inference.limit_memory=8", "--writer.progress=none"]),
    (["predict", "--data.slice_axis", "-1"], ["predict", "--data.slice_axis=-1"]),
    (["fit", "data", "-c", "a.yaml", "--config=b.yaml"], ["fit", "--config=a.yaml", "--config=b.yaml", "--data.data_dir=data"]),
    (["fit", "--trainer.callbacks+=X", "--print_config"], ["fit", "--trainer.callbacks+=X", "--print_config"]),
    (["fit", "--resume", "last.ckpt", "--steps", "9"], ["fit", "--ckpt_path=last.ckpt", "--trainer.max_steps=9"]),
    (["test", "data", "--checkpoint", "x"], ["test", "--ckpt_path=x", "--data.data_dir=data"]),
]  # fmt: skip


@pytest.mark.parametrize(("short", "dotted"), SAME)
def test_short_and_dotted_mean_the_same(short, dotted):
    assert translate(short) == dotted
    assert translate(dotted) == dotted, "dotted options stay as they are"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "in", "--thin_spcing", "1"], "Unknown option --thin_spcing; did you mean --thin_spacing?"),
        (["predict", "--output", "x"], "Unknown option --output. `mpunet predict --help`"),
        (["fit", "--chekpoint.dirpath", "x"], "Unknown option --chekpoint.dirpath"),
        (["predict", "a", "b", "c"], "Expected mpunet predict SCANS THIN, got 3 arguments: a, b, c. Quote"),
        (["predict", "--device"], "--device needs a value"),
        (["predict", "--device", "--fast"], "--device needs a value"),
        (["predict", "--fast=1"], "--fast has no value"),
        (["prdict", "in", "out"], "Unknown command prdict; did you mean predict?"),
        (["segment"], "Unknown command segment. `mpunet --help` lists"),
    ],
)  # fmt: skip
def test_a_wrong_word_gets_the_nearest_right_one(words, message, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inference.tiel", "256"], "did you mean --inference.tile?"),
        (["--inference.stride", "fats"], "stride"),
        (["--data.check_hu", "maybe"], "check_hu"),
        (["--model.net.widthz", "[2]"], "widthz"),
    ],
)
def test_a_wrong_dotted_option_is_one_line(words, message, capsys, tmp_path):
    assert main(["predict", str(tmp_path), str(tmp_path / "thin"), *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 2


def test_closest():
    assert (
        closest("--stride", ["--inference.stride", "--fast"])
        == "; did you mean --inference.stride?"
    )
    assert closest("--zzz", ["--fast"]) == ""


@pytest.mark.parametrize("command", LIGHTNING)
def test_help_fits_on_a_screen(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text == help_text(command) + "\n"
    lines = text.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert f"  mpunet {command} " in text, "an example to paste"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_the_other_commands(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 110
    assert f"mpunet {command} " in text.partition("example")[2], "an example to paste"


def test_help_needs_no_lightning():
    code = "import sys; from mpunet.__main__ import main; main(['predict', '-h']); print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - start < 10  # 0.1 s on an idle machine


def test_signs_that_a_code_page_lacks_are_escaped(tmp_path):
    (tmp_path / "findings.csv").write_text(
        "reader,condition,case,x,y,z,diameter\nanna,thin,a,0,0,0,9\n"
    )
    (tmp_path / "standard.csv").write_text("case,x,y,z,diameter\na,0,0,0,9\n")
    words = [
        "reader-study",
        "findings.csv",
        "standard.csv",
        "--thresholds",
        "5",
        "--figure",
        "false",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mpunet", *words, "--output", "9 × ≥"],
        cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"Tables: 9 × \u2265" in done.stdout.decode("cp1252")


def test_names_that_are_no_text_can_be_printed(capsys):
    assert main(["--version"]) == 0
    print("\udcff.nii")  # Python's string for a name whose byte is no UTF-8
    assert r"\udcff.nii" in capsys.readouterr().out


def test_completion_knows_commands_and_options(capsys, tmp_path):
    assert main(["--completion"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _mpunet; "
        code += 'echo "${COMPREPLY[@]}"'
        return subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()

    assert completed("mpunet", "pre") == ["predict"]
    assert completed("mpunet", "predict", "--thin") == ["--thin_spacing"]
    assert completed("mpunet", "evaluate", "t", "r", "--base") == ["--baselines"]
    assert len(completed("mpunet", "")) == len(COMMANDS) + len(LIGHTNING)
