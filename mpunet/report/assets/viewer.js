// The viewer: slices of several volumes in one plane at one position, zoomed and panned together.
// Positions are in mm along the axes 0 (towards the patient's left), 1 (posterior), 2 (inferior).

const PLANES = {
  coronal: { through: 1, down: 2, across: 0 },
  sagittal: { through: 0, down: 2, across: 1 },
  axial: { through: 2, down: 1, across: 0 },
};
const LETTERS = [["R", "L"], ["A", "P"], ["S", "I"]];
const MAPS = {
  signed: { colours: ["#b9e6ff", "#2f7fe6", "#101214", "#d9482b", "#ffe3a3"], from: -1, scale: 200, meaning: "volume − reference" },
  absolute: { colours: ["#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4"], from: 0, scale: 200, meaning: "|volume − reference|" },
  expected: { colours: ["#57106e", "#bc3754", "#f98e09", "#fcffa4"], from: 0, scale: 100, meaning: "expected |error|, over the image" },
  weights: { colours: ["#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4"], from: 0, scale: 3, meaning: "contrast-aware weight w" },
};
const CACHED_SLICES = 120;

/** Format a position along an axis as in radiology, in mm: "L 12.5". */
function place(axis, mm) {
  return `${LETTERS[axis][mm > 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;
}

class Viewer {
  constructor(root, cases, wholePage) {
    Object.assign(this, { root, cases, wholePage, plane: "coronal", index: {}, map: root.dataset.start, smooth: false, zoom: 1, centre: [0, 0] });
    this.scales = Object.fromEntries(Object.entries(MAPS).map(([name, map]) => [name, map.scale]));
    this.cache = new Map();
    this.pointers = new Map();
    this.field = (name) => root.querySelector(`[name="${name}"]`);
    for (const name of Object.keys(cases)) this.field("case").add(new Option(cases[name].label, name));
    root.querySelector(".cases").hidden = Object.keys(cases).length < 2;
    this.listen();
    this.open(Object.keys(cases)[0]);
  }

  // ---- what is shown

  open(name) {
    this.case = JSON.parse(this.cases[name].script.textContent);
    this.cache.clear();
    this.field("case").value = name;
    this.alone = null;
    this.volumes = this.case.volumes.filter((volume) => !volume.error_of);
    this.errors = new Map(this.case.volumes.filter((volume) => volume.error_of).map((errors) => [errors.error_of, errors]));
    this.reference = this.volumes.find((volume) => volume.name === this.case.reference);
    for (const [plane, positions] of Object.entries(this.case.positions)) this.index[plane] = Math.floor(positions.length / 2);
    this.root.querySelector(".windows").replaceChildren(...this.case.windows.map(([title, centre, width]) => {
      const button = Object.assign(document.createElement("button"), { textContent: title, title: `${centre} / ${width}` });
      button.onclick = () => this.setWindow(centre, width);
      return button;
    }));
    const compared = this.volumes.some((volume) => this.comparable(volume));
    const usable = { grey: true, signed: compared, absolute: compared, weights: this.weighable(), expected: this.errors.size > 0 };
    this.root.querySelector(".maps").hidden = !compared && !usable.expected;
    for (const [map, use] of Object.entries(usable)) this.root.querySelector(`[data-map="${map}"]`).hidden = !use;
    if (!usable[this.map]) this.map = "grey";
    const notes = this.root.querySelector(".notes");
    notes.hidden = !this.case.notes.length;
    notes.textContent = this.case.notes.join(" ");
    this.root.querySelector(".coverage").textContent = "Slices shown, mm: " + Object.entries(this.case.positions)
      .map(([plane, mm]) => `${plane} ${mm.length}, ${place(PLANES[plane].through, mm[0])} to ${place(PLANES[plane].through, mm.at(-1))}`)
      .join("; ") + ". Evenly spaced over the body and cropped to it; each volume shows its slice nearest to the position.";
    this.build();
    const [, centre, width] = this.case.windows[0];
    this.setWindow(centre, width);
  }

  comparable(volume) {
    return volume.compared && volume !== this.reference && volume.unit === this.reference.unit;
  }

  weighable() {
    return this.volumes.some((volume) => this.comparable(volume) && volume.unit === "HU");
  }

  setWindow(centre, width) {
    this.window = [centre, Math.max(width, 1e-6)];
    this.field("centre").value = +centre.toPrecision(6);
    this.field("width").value = +width.toPrecision(6);
    this.render();
  }

  step(by) {
    const last = this.case.positions[this.plane].length - 1;
    this.index[this.plane] = Math.min(Math.max(this.index[this.plane] + by, 0), last);
    this.render();
  }

  setPlane(plane) {
    this.plane = plane;
    this.fit();
  }

  setMap(map) {
    this.map = map;
    this.layout();
  }

  fit() {
    this.zoom = 1;
    this.layout();
  }

  // ---- the panels

  build() {
    this.panels = this.volumes.map((volume) => {
      const figure = document.createElement("figure");
      figure.className = "panel";
      figure.innerHTML = `<figcaption><button class="name"></button><span class="value"></span></figcaption>
        <div class="frame"><canvas role="img"></canvas><span class="left"></span><span class="right"></span>
        <span class="top"></span><span class="bottom"></span><i></i></div><p class="where"></p>`;
      const find = (selector) => figure.querySelector(selector);
      const name = find(".name");
      name.textContent = volume.name;
      name.title = `${volume.size}. Show it alone.`;
      name.onclick = () => { this.alone = this.alone === volume ? null : volume; this.layout(); };
      const pixels = document.createElement("canvas");
      return { volume, figure, name, pixels, canvas: find("canvas"), value: find(".value"), where: find(".where"), cross: find("i"), find };
    });
    this.root.querySelector(".panels").replaceChildren(...this.panels.map((panel) => panel.figure));
    this.panels.forEach((panel) => this.listenTo(panel));
    this.fit();
  }

  /** Edges in mm of all volumes in this plane: [left, top, right, bottom]. */
  extent() {
    const edges = this.volumes.map(({ planes: { [this.plane]: p } }) => [0, 1].flatMap((i) => {
      const pixels = i ? p.rows : p.columns;
      return [[p.first[i] - p.spacing[i] / 2, p.first[i] + (pixels - 0.5) * p.spacing[i]]];
    }));
    const pick = (i, side, choose) => choose(...edges.map((edge) => edge[i][side]));
    return [pick(0, 0, Math.min), pick(1, 0, Math.min), pick(0, 1, Math.max), pick(1, 1, Math.max)];
  }

  /** Arrange the panels in the number of columns that makes them largest in the available space. */
  layout() {
    this.controls();
    const [left, top, right, bottom] = this.extent();
    if (this.zoom === 1) this.centre = [(left + right) / 2, (top + bottom) / 2];
    const aspect = (right - left) / (bottom - top);
    const shown = this.panels.filter((panel) => !this.alone || panel.volume === this.alone);
    const area = this.root.querySelector(".panels");
    const above = this.wholePage ? area.getBoundingClientRect().top + scrollY : 150;
    const narrow = area.clientWidth < 600; // on a phone, scrolling is better than tiny panels
    const height = narrow ? Infinity : Math.max(innerHeight - above - 40, 320);
    let width = 0;
    for (let columns = narrow ? Math.min(2, shown.length) : 1; columns <= shown.length; columns++) {
      const rows = Math.ceil(shown.length / columns);
      const across = Math.floor((area.clientWidth - 6 * (columns - 1)) / columns);
      const wide = Math.floor(Math.min(across, (height / rows - 54) * aspect, innerHeight * 0.8 * aspect));
      if (wide > width) [width, area.style.gridTemplateColumns] = [wide, `repeat(${columns}, ${wide}px)`];
    }
    const { down, across } = PLANES[this.plane];
    for (const panel of this.panels) {
      panel.figure.hidden = !shown.includes(panel);
      panel.find(".frame").style.height = `${Math.round(width / aspect)}px`;
      [[".left", across, 0], [".right", across, 1], [".top", down, 0], [".bottom", down, 1]]
        .forEach(([side, axis, end]) => { panel.find(side).textContent = LETTERS[axis][end]; });
      panel.canvas.width = Math.round(width * devicePixelRatio);
      panel.canvas.height = Math.round((width / aspect) * devicePixelRatio);
      panel.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
      panel.name.setAttribute("aria-pressed", panel.volume === this.alone);
    }
    this.render();
  }

  /** Canvas pixels per mm. */
  pixelsPerMm(canvas) {
    const [left, , right] = this.extent();
    return (canvas.width / (right - left)) * this.zoom;
  }

  /** Index of the slice of a volume that is nearest to the slider's position. */
  nearest(volume) {
    const mm = this.case.positions[this.plane][this.index[this.plane]];
    const at = volume.planes[this.plane].at;
    return at.reduce((best, other, i) => (Math.abs(other - mm) < Math.abs(at[best] - mm) ? i : best), 0);
  }

  /** Distance in mm from the slider to the volume's nearest slice; `covered`: it is close enough. */
  offset(volume) {
    const { through } = PLANES[this.plane], plane = volume.planes[this.plane];
    const off = Math.abs(plane.at[this.nearest(volume)] - this.case.positions[this.plane][this.index[this.plane]]);
    return { off, covered: off < 0.55 * volume.spacing[through] };
  }

  async codes(volume) {
    const plane = volume.planes[this.plane], index = this.nearest(volume);
    const key = `${volume.name}/${this.plane}/${index}`;
    const found = this.cache.get(key) ?? decodeSlice(plane.slices[index], plane.rows, plane.columns);
    this.cache.delete(key); // moves the key to the end: the least recently used one is first
    this.cache.set(key, found);
    if (this.cache.size > CACHED_SLICES) this.cache.delete(this.cache.keys().next().value);
    return found;
  }

  async render() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.controls();
    const codes = await Promise.all(this.volumes.map((volume) => this.codes(volume)));
    const expected = this.map === "expected";
    const errors = await Promise.all(this.volumes.map(({ name }) => expected && this.errors.has(name) && this.codes(this.errors.get(name))));
    if (turn !== this.turn) return; // a newer render has started
    const reference = codes[this.volumes.indexOf(this.reference)];
    this.panels.forEach((panel, i) => {
      panel.codes = codes[i];
      panel.errors = errors[i];
      panel.reference = this.map !== "grey" && !expected && this.comparable(panel.volume) && this.sameSlice(panel.volume) ? reference : null;
      this.paint(panel);
      this.draw(panel);
    });
    this.point();
    this.root.dataset.turn = turn;
  }

  /** Paint the pixels of a slice on its own grid. */
  paint(panel) {
    const { volume, codes, pixels } = panel, { rows, columns } = volume.planes[this.plane];
    pixels.width = columns;
    pixels.height = rows;
    const context = pixels.getContext("2d"), image = context.createImageData(columns, rows), out = image.data;
    const [centre, width] = volume.window ?? this.window;
    const greys = volume.levels.map((value) => Math.round(255 * Math.min(Math.max((value - centre) / width + 0.5, 0), 1)));
    const value = panel.reference && this.mapped(panel), partner = value && this.partners(volume);
    const { colours, from } = MAPS[this.map] ?? {};
    const table = (value || panel.errors) && colourTable(colours), scale = this.scales[this.map] || 1;
    const shares = panel.errors && this.errors.get(volume.name).levels.map((hu) => Math.min(hu / scale, 1));
    for (let i = 0, o = 0; i < codes.length; i++, o += 4) {
      if (value) {
        if (partner[i] < 0) continue; // outside the reference, nothing is painted
        const share = (value(i, partner[i]) / scale - from) / (1 - from);
        [out[o], out[o + 1], out[o + 2]] = table[Math.round(255 * Math.min(Math.max(share, 0), 1))];
      } else out[o] = out[o + 1] = out[o + 2] = greys[codes[i]];
      if (shares) {
        const share = shares[panel.errors[i]], colour = table[Math.round(255 * share)];
        for (let c = 0; c < 3; c++) out[o + c] += share * (colour[c] - out[o + c]);
      }
      out[o + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  sameSlice(volume) {
    const at = (one) => one.planes[this.plane].at[this.nearest(one)], { through } = PLANES[this.plane];
    return Math.abs(at(volume) - at(this.reference)) < 0.2 * volume.spacing[through];
  }

  /** For each pixel, the index of the reference's pixel at the same position, or -1. */
  partners(volume) {
    const own = volume.planes[this.plane], other = this.reference.planes[this.plane];
    const [x, y] = [0, 1].map((i) => Math.round((own.first[i] - other.first[i]) / own.spacing[i]));
    return Int32Array.from({ length: own.rows * own.columns }, (_, i) => {
      const column = (i % own.columns) + x, row = Math.floor(i / own.columns) + y;
      return column < 0 || row < 0 || column >= other.columns || row >= other.rows ? -1 : row * other.columns + column;
    });
  }

  /** Function (i, j): value of the map for pixel i of a panel and pixel j of the reference. */
  mapped({ volume, codes, reference }) {
    const one = volume.levels, other = this.reference.levels;
    if (this.map === "signed") return (i, j) => one[codes[i]] - other[reference[j]];
    if (this.map === "absolute") return (i, j) => Math.abs(one[codes[i]] - other[reference[j]]);
    const intensity = (hu) => (Math.min(Math.max(hu, -1024), 3071) + 1024) / 4095;
    const [x, wanted] = [one.map(intensity), other.map(intensity)];
    const [alpha, beta, gamma] = ["alpha", "beta", "gamma"].map((name) => +this.field(name).value);
    return (i, j) => (Math.abs(x[codes[i]] - wanted[reference[j]]) / (wanted[reference[j]] + alpha)) ** gamma * beta;
  }

  draw({ volume, canvas, pixels, where }) {
    const plane = volume.planes[this.plane], scale = this.pixelsPerMm(canvas);
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale, 0, 0, scale, canvas.width / 2 - this.centre[0] * scale, canvas.height / 2 - this.centre[1] * scale);
    context.imageSmoothingEnabled = this.smooth;
    context.imageSmoothingQuality = "high";
    const [x, y] = [0, 1].map((i) => plane.first[i] - plane.spacing[i] / 2);
    const { off, covered } = this.offset(volume);
    if (covered) context.drawImage(pixels, x, y, plane.columns * plane.spacing[0], plane.rows * plane.spacing[1]);
    const { through } = PLANES[this.plane], mm = plane.at[this.nearest(volume)];
    const expected = this.map === "expected", other = this.map !== "grey" && !expected && volume !== this.reference;
    const why = expected && !this.errors.has(volume.name) ? "no error map; " : other && !this.comparable(volume) ? "other grid, no map; " : other && !this.sameSlice(volume) ? "other slice, no map; " : "";
    where.textContent = !covered ? "outside this volume" : `${why}${off > 0.05 ? `slice ${place(through, mm)}, ${off.toFixed(1)} mm off; ` : ""}${volume.caption}`;
    canvas.setAttribute("aria-label", `${volume.name}, ${this.plane} slice at ${place(through, mm)} mm`);
  }

  /** Update buttons, slider and legend to the current state. */
  controls() {
    const { through } = PLANES[this.plane], positions = this.case.positions[this.plane], index = this.index[this.plane];
    const slider = this.field("slice"), press = (button, on) => button.setAttribute("aria-pressed", on);
    slider.max = positions.length - 1;
    slider.value = index;
    const position = `${place(through, positions[index])} mm`;
    slider.setAttribute("aria-valuetext", `${this.plane} ${position}`);
    this.field("position").textContent = `${position}  (${index + 1}/${positions.length})`;
    this.root.querySelectorAll("[data-plane]").forEach((button) => press(button, button.dataset.plane === this.plane));
    this.root.querySelectorAll("[data-map]").forEach((button) => press(button, button.dataset.map === this.map));
    press(this.root.querySelector('[data-action="smooth"]'), this.smooth);
    const [centre, width] = this.window ?? [];
    [...this.root.querySelectorAll(".windows button")].forEach((button, i) =>
      press(button, this.case.windows[i][1] === centre && this.case.windows[i][2] === width));
    const map = MAPS[this.map], find = (selector) => this.root.querySelector(selector);
    find(".legend").hidden = !map;
    if (!map) return;
    const unit = { weights: "", expected: "HU" }[this.map] ?? this.reference.unit, scale = this.scales[this.map];
    find(".low").textContent = map.from < 0 ? `−${scale}` : "0";
    find(".high").textContent = `${map.from < 0 ? "+" : ""}${scale} ${unit}`;
    find(".colours").style.background = `linear-gradient(90deg, ${map.colours.join(", ")})`;
    find(".legend .unit").textContent = unit;
    find(".meaning").textContent = map.meaning.replace("reference", this.case.reference);
    find(".parameters").hidden = this.map !== "weights";
    if (document.activeElement !== this.field("scale")) this.field("scale").value = scale;
    for (const name of ["alpha", "beta", "gamma"]) this.field(`${name}-value`).textContent = this.field(name).value;
  }

  // ---- pointer and keys

  /** Position (across, down) under the pointer in mm. */
  under(canvas, event) {
    const box = canvas.getBoundingClientRect(), scale = this.pixelsPerMm(canvas) / (canvas.width / box.width);
    return [(event.clientX - box.left - box.width / 2) / scale + this.centre[0], (event.clientY - box.top - box.height / 2) / scale + this.centre[1]];
  }

  /** Show the values at the pointer in all panels, and its position in the patient. */
  point() {
    const { through, down, across } = PLANES[this.plane];
    for (const { volume, canvas, codes, errors, cross, value } of this.panels) {
      cross.style.display = this.pointer ? "block" : "none";
      value.textContent = "";
      if (!this.pointer || !codes || !this.offset(volume).covered) continue;
      const plane = volume.planes[this.plane], scale = this.pixelsPerMm(canvas) / devicePixelRatio;
      const at = this.pointer.map((mm, i) => Math.round((mm - plane.first[i]) / plane.spacing[i]));
      cross.style.left = `calc(50% + ${(this.pointer[0] - this.centre[0]) * scale}px)`;
      cross.style.top = `calc(50% + ${(this.pointer[1] - this.centre[1]) * scale}px)`;
      if (at[0] < 0 || at[1] < 0 || at[0] >= plane.columns || at[1] >= plane.rows) continue;
      const pixel = at[1] * plane.columns + at[0], expected = errors && this.errors.get(volume.name).levels[errors[pixel]];
      value.textContent = `${+volume.levels[codes[pixel]].toPrecision(5)} ${volume.unit}`.replace("-", "−");
      if (errors) value.textContent += `, error ${expected.toFixed()} HU`;
    }
    if (!this.pointer) return;
    const own = [];
    own[through] = this.case.positions[this.plane][this.index[this.plane]];
    [own[across], own[down]] = this.pointer;
    const world = this.case.directions.map((row) => row[0] * own[0] + row[1] * own[1] + row[2] * own[2]);
    this.field("position").textContent = `${world.map((mm, axis) => place(axis, mm)).join("  ")} mm`;
  }

  zoomBy(factor, about = this.centre) {
    const before = this.zoom;
    this.zoom = Math.min(Math.max(before * factor, 1), 20);
    this.centre = this.centre.map((mm, i) => about[i] + ((mm - about[i]) * before) / this.zoom);
    this.panBy(0, 0);
    this.layout();
  }

  panBy(x, y) {
    const [left, top, right, bottom] = this.extent(), clamp = (v, low, high) => Math.min(Math.max(v, low), high);
    const half = [(right - left) / 2 / this.zoom, (bottom - top) / 2 / this.zoom];
    this.centre = [clamp(this.centre[0] + x, left + half[0], right - half[0]), clamp(this.centre[1] + y, top + half[1], bottom - half[1])];
  }

  listenTo({ canvas }) {
    const drop = (event) => this.pointers.delete(event.pointerId);
    canvas.onpointerdown = (event) => {
      this.root.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    };
    canvas.onpointerup = canvas.onpointercancel = drop;
    canvas.onpointerleave = (event) => {
      if (event.pointerType === "touch") return; // after a touch, its values stay visible
      this.pointer = null;
      this.controls();
      this.point();
    };
    canvas.onpointermove = (event) => {
      const last = this.pointers.get(event.pointerId), [x, y] = [event.clientX - last?.clientX, event.clientY - last?.clientY];
      const mm = this.pixelsPerMm(canvas) / devicePixelRatio;
      if (last) this.pointers.set(event.pointerId, event);
      if (last && this.pointers.size === 2) {
        const [other] = [...this.pointers.values()].filter((p) => p.pointerId !== event.pointerId);
        const apart = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
        this.zoomBy(apart(event) / Math.max(apart(last), 1), this.under(canvas, other));
      } else if (last && event.shiftKey) {
        this.setWindow(this.window[0] + y * this.window[1] / 400, this.window[1] * 1.005 ** x);
      } else if (last && this.zoom > 1) {
        this.panBy(-x / mm, -y / mm);
        this.panels.forEach((panel) => this.draw(panel));
      }
      this.pointer = this.under(canvas, event);
      this.point();
    };
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, this.under(canvas, event));
      else if (this.wholePage || this.root.contains(document.activeElement)) this.step(Math.sign(event.deltaY));
      else return; // let the page scroll
      event.preventDefault();
    }, { passive: false });
  }

  listen() {
    const { root } = this;
    const actions = {
      previous: () => this.step(-1), next: () => this.step(1), in: () => this.zoomBy(1.4), out: () => this.zoomBy(1 / 1.4), fit: () => this.fit(),
      smooth: () => { this.smooth = !this.smooth; this.render(); },
    };
    root.querySelectorAll("[data-plane]").forEach((button) => { button.onclick = () => this.setPlane(button.dataset.plane); });
    root.querySelectorAll("[data-map]").forEach((button) => { button.onclick = () => this.setMap(button.dataset.map); });
    root.querySelectorAll("[data-action]").forEach((button) => { button.onclick = actions[button.dataset.action]; });
    this.field("case").onchange = (event) => this.open(event.target.value);
    this.field("slice").oninput = (event) => this.step(event.target.value - this.index[this.plane]);
    for (const name of ["centre", "width"]) {
      this.field(name).onchange = () => this.setWindow(+this.field("centre").value, +this.field("width").value);
    }
    this.field("scale").oninput = (event) => { if (+event.target.value > 0) this.scales[this.map] = +event.target.value; this.render(); };
    for (const name of ["alpha", "beta", "gamma"]) this.field(name).oninput = () => this.render();
    addEventListener("resize", () => this.layout());
    const cycle = (names, now) => names[(names.indexOf(now) + 1) % names.length];
    const windows = () => [...root.querySelectorAll(".windows button")];
    const keys = {
      ArrowLeft: () => this.step(-1), ArrowUp: () => this.step(-1), ArrowRight: () => this.step(1), ArrowDown: () => this.step(1),
      PageUp: () => this.step(-5), PageDown: () => this.step(5), Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      v: () => this.setPlane(cycle(Object.keys(PLANES), this.plane)),
      w: () => cycle(windows(), windows().find((button) => button.getAttribute("aria-pressed") === "true")).click(),
      e: () => {
        const maps = [...root.querySelectorAll(".maps:not([hidden]) [data-map]:not([hidden])")].map((button) => button.dataset.map);
        if (maps.length) this.setMap(cycle(maps, this.map));
      },
      s: actions.smooth, "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.fit,
    };
    (this.wholePage ? document : root).addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=number]")) return;
      // The slider handles these keys itself.
      if (event.target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
      const action = keys[event.key] ?? keys[event.key.toLowerCase()] ?? (/^[1-9]$/.test(event.key) && (() => windows()[event.key - 1]?.click()));
      if (!action) return;
      event.preventDefault();
      action();
    });
  }
}

addEventListener("DOMContentLoaded", () => {
  const root = document.querySelector(".viewer");
  if (!root) return;
  if (typeof DecompressionStream === "undefined") {
    root.textContent = "This browser is too old to show volumes: it requires Chrome 80, Firefox 113, Safari 16.4 or later.";
    return;
  }
  const scripts = [...document.querySelectorAll("script.case")];
  const cases = Object.fromEntries(scripts.map((script) => [script.dataset.name, { label: script.dataset.label, script }]));
  window.viewer = new Viewer(root, cases, document.body.classList.contains("whole-page"));
});
