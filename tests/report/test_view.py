"""``mpunet view`` and its page in headless Chromium: the canvases show the values in the files."""

import numpy as np
import pytest
import torch
from helpers import save

from mpunet.cli.view import run
from mpunet.intensity import from_hu
from mpunet.losses import contrast_aware_weight
from mpunet.report.hu_codec import HU_LEVELS, to_codes
from mpunet.slices.simulate import thicken

SHAPE = (21, 24, 30)

# The colour of the visible canvas where pixel (row, column) of a panel's slice stands.
COLOUR = """((panel, row, column) => {
  const { canvas, volume } = viewer.panels[panel];
  const plane = volume.planes[viewer.plane], scale = viewer.pixelsPerMm(canvas);
  const [x, y] = [[column, 0, canvas.width], [row, 1, canvas.height]].map(
    ([i, axis, size]) => Math.floor(
      (plane.first[axis] + i * plane.spacing[axis] - viewer.centre[axis]) * scale + size / 2));
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
})"""


def shown_hu(slab):
    """HU as the page rounds them."""
    return HU_LEVELS[to_codes(np.asarray(slab))]


def grey(hu, centre, width):
    return np.floor(255 * ((hu - centre) / width + 0.5).clip(0, 1) + 0.5)


@pytest.fixture(scope="module")
def chest():
    """Lung, vessels and noise in a body: slabs thin, thick and of a method (depth towards S)."""
    rng = np.random.default_rng(0)
    thin = np.full(SHAPE, -850, np.int16)
    thin[:, :4], thin[:, -4:], thin[:, :, :4], thin[:, :, -4:] = 40, 60, 20, 30
    thin[6:9, 10:14, 8:12] = 100
    thin += rng.integers(-60, 60, SHAPE, dtype=np.int16)
    thick = thicken(thin, 5).round().astype(np.int16)
    return thin, thick, np.repeat(thick, 5, axis=0)[2:-2]


@pytest.fixture(scope="module")
def page(chest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("view")
    thin, thick, method = chest
    files = [
        save(folder / "thick.nii.gz", thick, spacing=(5.0, 1.5, 1.5), codes="RAS"),
        save(folder / "repeated.nii.gz", method, spacing=(1.0, 1.5, 1.5)),
        save(folder / "truth.nii.gz", thin, spacing=(1.0, 1.5, 1.5), codes="AIL"),
    ]
    output = folder / "out" / "page.html"
    assert run([*map(str, files), "--output", str(output), "--reference", "truth"]) == 0
    return output


def index(browser, plane, mm):
    """Move the slider to a position in mm."""
    browser.click(f'[data-plane="{plane}"]')
    positions = browser.run(f"viewer.case.positions.{plane}")
    at = int(np.argmin(np.abs(np.array(positions) - mm)))
    assert positions[at] == pytest.approx(mm, abs=1e-3)
    browser.run(
        f"(slider => {{ slider.value = {at}; slider.dispatchEvent(new Event('input')); }})"
        "(viewer.field('slice'))"
    )
    browser.idle()


def test_it_opens_without_errors_and_without_network(browser, page):
    browser.open(page)
    browser.press("v")
    browser.press("e")
    assert browser.problems == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.run("document.title") == "thick · repeated · truth"
    names = browser.run(
        "[...document.querySelectorAll('button, input, select, canvas')].map("
        "e => e.ariaLabel || e.textContent || "
        "(e.labels && e.labels.length ? e.labels[0].textContent : ''))"
    )
    assert all(name.strip() for name in names)
    assert "http" not in page.read_text().replace("http-equiv", "").lower()


def test_the_slider_shows_the_slices_of_the_files(browser, page, chest):
    thin, thick, _ = chest
    browser.open(page)
    seen = set()
    for z in (3, 7, 15):
        index(browser, "axial", -z)
        for row, column in ((0, 0), (11, 9), (20, 17), (23, 29)):
            wanted = grey(shown_hu(thin[z, row, column]), -600, 1500)
            assert browser.run(f"{COLOUR}(2, {row}, {column})") == [wanted, wanted, wanted, 255]
            nearest = grey(shown_hu(thick[round(z / 5), row, column]), -600, 1500)
            assert browser.run(f"{COLOUR}(0, {row}, {column})")[0] == nearest
        seen.add(browser.run("viewer.panels[2].canvas.toDataURL()"))
        off = {3: "slice S 5.0, 2.0 mm off; ", 7: "slice S 5.0, 2.0 mm off; ", 15: ""}[z]
        assert (
            browser.run("document.querySelector('.where').textContent")
            == f"{off}1.50 × 1.50 × 5.00 mm"
        )
    assert len(seen) == 3
    assert browser.run("viewer.field('position').textContent").startswith("S 15.0 mm")


def test_coronal_and_sagittal_are_right_side_up_in_true_proportions(browser, page, chest):
    thin, thick, _ = chest
    browser.open(page)
    browser.click(".windows button:nth-child(2)")
    index(browser, "coronal", -60 + 1.5 * 11)
    for row, column in (
        (0, 0),
        (13, 9),
        (20, 29),
        (5, 20),
    ):  # row 0 is the highest slice, column 0 the patient's right
        wanted = grey(shown_hu(thin[20 - row, 11, column]), 40, 400)
        assert browser.run(f"{COLOUR}(2, {row}, {column})")[0] == wanted
    assert browser.run(f"{COLOUR}(0, 1, 9)")[0] == grey(shown_hu(thick[3, 11, 9]), 40, 400)
    index(browser, "sagittal", -80 + 1.5 * 9)
    for row, column in ((0, 0), (13, 11), (20, 23)):  # column 0 is anterior
        assert browser.run(f"{COLOUR}(2, {row}, {column})")[0] == grey(
            shown_hu(thin[20 - row, column, 9]), 40, 400
        )
    letters = browser.run(
        "['left', 'right', 'top', 'bottom'].map("
        "side => document.querySelector(`.frame .${side}`).textContent)"
    )
    assert letters == ["A", "P", "S", "I"]
    # 25 mm of thick slices (five of 5 mm) beside 36 mm from front to back.
    width, height = browser.run("[viewer.panels[0].canvas.width, viewer.panels[0].canvas.height]")
    assert width / height == pytest.approx(36 / 25, rel=0.01)


def test_maps_of_errors_and_weights(browser, page, chest):
    thin, _, method = chest
    browser.open(page)
    index(browser, "axial", -7)
    for key, what in (("e", "signed"), ("e", "absolute"), ("e", "weights")):
        browser.press(key)
        assert browser.run("viewer.map") == what
        values = np.array(
            browser.run(
                "Array.from({length: 24 * 30}, (_, i) => viewer.mapped(viewer.panels[1])(i, i))"
            )
        )
        one, other = shown_hu(method[7]), shown_hu(thin[7])
        if what == "weights":
            tensors = (torch.from_numpy(from_hu(hu)) for hu in (one, other))
            np.testing.assert_allclose(
                values.reshape(24, 30), contrast_aware_weight(*tensors).numpy(), rtol=1e-9
            )
            exact = [torch.from_numpy(from_hu(slab[7].astype(float))) for slab in (method, thin)]
            error = np.abs(values.reshape(24, 30) - contrast_aware_weight(*exact).numpy())
            assert error.mean() < 0.05  # what rounding HU to 8 does to weights of 0.6 on average
        else:
            wanted = one - other if what == "signed" else np.abs(one - other)
            np.testing.assert_array_equal(values.reshape(24, 30), wanted)
            (row, column) = np.unravel_index(np.argmax(one - other), (24, 30))
            red, green, blue, _ = browser.run(f"{COLOUR}(1, {row}, {column})")
            assert red > blue  # the volume is brighter than the reference
        red, green, blue, _ = browser.run(f"{COLOUR}(2, 11, 9)")
        assert red == green == blue  # the reference stays as it is
    assert browser.run("document.querySelector('.where').textContent").startswith(
        "other grid, no map"
    )
    browser.run(
        "(slider => { slider.value = 0; slider.dispatchEvent(new Event('input')); })"
        "(viewer.field('gamma'))"
    )
    browser.idle()
    assert browser.run("viewer.mapped(viewer.panels[1])(5, 5)") == 5  # beta
    assert browser.run("viewer.field('gamma-value').textContent") == "0"


def test_keys(browser, page):
    browser.open(page)
    start = browser.run("viewer.index.coronal")
    for key, wanted in (
        ("ArrowRight", 1),
        ("ArrowDown", 2),
        ("ArrowLeft", 1),
        ("PageDown", 6),
        ("PageUp", 1),
    ):
        browser.press(key)
        assert browser.run("viewer.index.coronal") - start == wanted
    browser.press("End")
    assert browser.run("viewer.index.coronal") == 23
    browser.press("v")
    assert browser.run("viewer.plane") == "sagittal"
    for key, window in (("w", [40, 400]), ("3", [400, 1800]), ("1", [-600, 1500])):
        browser.press(key)
        assert browser.run("viewer.window") == window
    browser.press("+")
    assert browser.run("viewer.zoom") == pytest.approx(1.4)
    browser.press("0")
    assert browser.run("viewer.zoom") == 1
    browser.press("s")
    assert browser.run("viewer.smooth") is True


def test_the_pointer_tells_value_and_place(browser, page, chest):
    thin = chest[0]
    browser.open(page)
    index(browser, "axial", -7)
    x, y = browser.run(
        "(box => [box.left + box.width * 9.5 / 30, box.top + box.height * 11.5 / 24])"
        "(viewer.panels[2].canvas.getBoundingClientRect())"
    )
    browser.mouse("mouseMoved", x, y)
    value = f"{shown_hu(thin[7, 11, 9]):.0f} HU".replace("-", "−")
    assert browser.run("viewer.panels[2].value.textContent") == value
    assert browser.run("viewer.panels[0].value.textContent").endswith("HU")
    place = [
        float(word) for word in browser.run("viewer.field('position').textContent").split()[1:-1:2]
    ]
    assert place == pytest.approx([80 - 1.5 * 9, 60 - 1.5 * 11, 7], abs=0.2)
    before = browser.run("viewer.index.axial")
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=100)
    assert browser.run("viewer.index.axial") == before + 1
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100, modifiers=2)
    assert browser.run("viewer.zoom") == pytest.approx(1.2)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, page):
    browser.open(page, width=375, height=812, mobile=True)
    for _ in range(4):
        assert browser.run("document.documentElement.scrollWidth") == 375
        browser.press("e")
    assert browser.run("viewer.panels[0].canvas.getBoundingClientRect().width") > 170
    assert browser.problems == []


def test_volumes_of_other_extent_stand_where_they_are(browser, tmp_path, chest):
    thin = chest[0]
    save(tmp_path / "all.nii.gz", thin)
    save(tmp_path / "part.nii.gz", thin[5:9], start=5.0)
    run(
        [
            str(tmp_path / "all.nii.gz"),
            str(tmp_path / "part.nii.gz"),
            "--output",
            str(tmp_path / "page.html"),
            "--reference",
            "all",
        ]
    )
    browser.open(tmp_path / "page.html")
    index(browser, "axial", -4)
    where = "viewer.panels[1].where.textContent"
    assert browser.run(where) == "outside this volume"
    assert browser.run(f"{COLOUR}(1, 11, 9)") == [0, 0, 0, 0]  # nothing is drawn
    index(browser, "axial", -5)
    assert browser.run(where) == "0.70 × 0.70 × 1.00 mm"
    assert browser.run(f"{COLOUR}(1, 11, 9)") == browser.run(f"{COLOUR}(0, 11, 9)")
    index(browser, "coronal", -60 + 0.7 * 11)
    browser.press("e")
    # Its lowest row is thin slice 5: there the error is 0, on the colour map's middle.
    assert (
        browser.run(f"{COLOUR}(1, 3, 9)") == browser.run(f"{COLOUR}(1, 0, 20)") == [18, 18, 20, 255]
    )
    assert browser.run(f"{COLOUR}(0, 15, 9)")[0] == grey(shown_hu(thin[5, 11, 9]), -600, 1500)


def test_an_error_map_is_painted_over_its_volume(browser, tmp_path, chest):
    thin = chest[0]
    errors = np.full(SHAPE, 0, np.int16)
    errors[3, 11, 9], errors[3, 11, 10], errors[3, 11, 11] = 50, 100, 255
    files = [save(tmp_path / f"{name}.nii.gz", s) for name, s in (("thin", thin), ("truth", thin))]
    map_ = save(tmp_path / "thin_error.nii.gz", errors)
    output = tmp_path / "page.html"
    options = ["--reference", "truth", "--error_map", str(map_), "--output", str(output)]
    assert run([str(files[1]), str(files[0]), *options]) == 0
    browser.open(output)
    assert browser.run("viewer.panels.length") == 2
    assert browser.run("viewer.map") == "expected"
    index(browser, "axial", -3)
    grey_of = [grey(shown_hu(thin[3, 11, column]), -600, 1500) for column in range(30)]
    # The volume beside the reference has the map: opaque from 100 HU on, half at 50 HU.
    assert browser.run(f"{COLOUR}(1, 11, 8)")[:3] == [grey_of[8]] * 3
    middle = np.add([0xBC, 0x37, 0x54], [0xF9, 0x8E, 0x09]) / 2  # of the colours, at 50 HU
    half = (grey_of[9] + middle) / 2
    np.testing.assert_allclose(browser.run(f"{COLOUR}(1, 11, 9)")[:3], half, atol=3)
    for column in (10, 11):
        assert browser.run(f"{COLOUR}(1, 11, {column})") == [0xFC, 0xFF, 0xA4, 255]
        assert browser.run(f"{COLOUR}(0, 11, {column})")[:3] == [grey_of[column]] * 3
    assert browser.run("viewer.panels[0].where.textContent").startswith("no error map; ")
    browser.run(
        "(({ first, spacing }) => { viewer.pointer = [first[0] + 9 * spacing[0], first[1] + 11 * "
        "spacing[1]]; viewer.point(); })(viewer.volumes[1].planes.axial)"
    )
    shown = browser.run("viewer.panels.map((panel) => panel.value.textContent)")
    assert shown[1] == f"{shown[0]}, error 50 HU"
    assert browser.run("document.querySelector('.legend').hidden") is False
    assert browser.run("document.querySelector('.legend .high').textContent") == "100 HU"
    browser.press("e")
    assert browser.run("viewer.map") == "grey"
    assert browser.run(f"{COLOUR}(1, 11, 11)")[:3] == [grey_of[11]] * 3
    # Chromium has advice for pages that read their canvas as often as this test does.
    assert [text for text in browser.problems if "willReadFrequently" not in text] == []


def test_two_fingers_zoom_and_one_pans(browser, page):
    browser.open(page, width=375, height=812, mobile=True)
    x, y = browser.run(
        "(box => [box.left + box.width / 2, box.top + box.height / 2])"
        "(viewer.panels[0].canvas.getBoundingClientRect())"
    )

    def touch(kind, *points):
        fingers = [{"x": x + shift, "y": y, "id": number} for number, shift in enumerate(points)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
        browser.idle()

    touch("touchStart", -20, 20)
    touch("touchMove", -20, 60)
    touch("touchEnd")
    assert browser.run("viewer.zoom") == pytest.approx(2)
    centre = browser.run("viewer.centre[0]")
    touch("touchStart", 0)
    touch("touchMove", -30)
    touch("touchEnd")
    assert browser.run("viewer.centre[0]") > centre  # the picture went left with the finger
    assert browser.problems == []


def test_the_command(tmp_path, capsys):
    slab = np.full((4, 6, 6), 0, np.int16)
    slab[:, 0] = -1000
    paths = [str(save(tmp_path / folder / "scan.nii.gz", slab)) for folder in ("one", "two")]
    output = tmp_path / "page.html"
    output.write_text("old")
    assert run([*paths, "--output", str(output), "--slices", "2"]) == 0
    assert "one/scan · two/scan" in output.read_text()
    assert str(output) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "page.html", "two"]
    run(
        [
            *paths,
            "--output",
            str(output),
            "--names",
            "<b>a</b>,</script>",
            "--reference",
            "</script>",
            "--weights",
            "true",
        ]
    )
    assert output.read_text().count("</script>") == 2  # the case's and the page's
    assert 'data-start="weights"' in output.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names", "a"], "Expected 2 distinct names, one for each volume, got a"),
        (["--names", "a,a"], "distinct names"),
        (["--reference", "c"], "reference among a, b, got c"),
        (["--weights", "true"], "give --reference"),
        (["--reference", "a", "--weights", "true"], "a volume on its grid"),
    ],
)
def test_errors(tmp_path, options, message):
    slab = np.full((4, 6, 6), -1000, np.int16)
    slab[:, 2:] = 0
    paths = [
        str(save(tmp_path / "a.nii.gz", slab)),
        str(save(tmp_path / "b.nii.gz", slab, spacing=(1.3, 0.7, 0.7))),
    ]
    with pytest.raises(ValueError, match=message):
        run([*paths, "--output", str(tmp_path / "page.html"), *options])
    assert not (tmp_path / "page.html").exists()
