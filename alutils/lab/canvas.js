// The drawing tool in the browser: it draws strokes at once, sends the finished ones to annotator.py, and shows the mask
// that comes back. X, Y are pixels of the picture, from its upper left corner; what is sent is in pixels of the mask.

const ORANGE = "#E69F00", BLUE = "#0072B2", WHITE = "#F5F5F5", DARK = "#303030";
const LARGEST = 2048; // pixels, the sides of the layers over a photograph
const KEYS = "B brush · E eraser · L lasso · X lasso eraser · [ ] size · V band · wheel or + − zoom, 0 fit, 1 pixel by " +
  "pixel · Space and drag, right button or arrows: move · Ctrl+Z undo · Ctrl+Shift+Z or Ctrl+Y redo · P back · N skip · " +
  "A accept as proposed · Enter save and next";
const STYLE = `
.alutils-pen { outline: none; font: 13px var(--jp-ui-font-family, sans-serif); color: var(--jp-ui-font-color1, #222) }
.alutils-pen > div { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; margin: 3px 0 }
.alutils-pen button { padding: 2px 7px; border: 1px solid #888; border-radius: 3px; background: none; color: inherit;
  font: inherit; cursor: pointer }
.alutils-pen button:disabled { opacity: 0.4 }
.alutils-pen button[aria-pressed=true], .alutils-pen .save { background: ${BLUE}; color: white }
.alutils-pen label { display: flex; align-items: center; gap: 3px; margin-left: 6px }
.alutils-pen input[type=range] { width: 80px }
.alutils-pen .place { font-weight: bold }
.alutils-pen .unsaved { color: #B34700; font-weight: bold }
.alutils-pen .done { color: #00704F; font-weight: bold }
.alutils-pen .keys { font-size: 11px; opacity: 0.8 }
.alutils-pen .stage { position: relative; display: block; height: clamp(260px, 50vh, 900px); overflow: hidden;
  background: #777; touch-action: none; cursor: crosshair }
.alutils-pen:focus-within .stage { box-shadow: 0 0 0 2px ${BLUE} }
.alutils-pen .sheet { position: absolute; transform-origin: 0 0 }
.alutils-pen .sheet > *, .alutils-pen .pen { position: absolute; left: 0; top: 0; width: 100%; height: 100%; max-width: none }
.alutils-pen .grey { mix-blend-mode: saturation }`;

function make(name, parent, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  parent.append(made);
  return made;
}

function unpack(data, n) { // numpy.packbits undone
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength), bits = new Uint8Array(n);
  for (let i = 0; i < n; i++) bits[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return bits;
}

function paint(canvas, [w, h], colourOf) { // one colour, or none, per pixel of the mask
  const small = new OffscreenCanvas(w, h), context = small.getContext("2d"), pixels = context.createImageData(w, h);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < w * h; i++) words[i] = colourOf(i);
  context.putImageData(pixels, 0, 0);
  const large = canvas.getContext("2d");
  large.imageSmoothingEnabled = false;
  large.clearRect(0, 0, canvas.width, canvas.height);
  large.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function outline(canvas, [w, h], bits, colour, width) { // along the edges of the pixels
  const context = canvas.getContext("2d"), a = canvas.width / w, b = canvas.height / h;
  context.beginPath();
  for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++) {
    if (x + 1 < w && bits[i] !== bits[i + 1]) { context.moveTo((x + 1) * a, y * b); context.lineTo((x + 1) * a, (y + 1) * b); }
    if (y + 1 < h && bits[i] !== bits[i + w]) { context.moveTo(x * a, (y + 1) * b); context.lineTo((x + 1) * a, (y + 1) * b); }
  }
  Object.assign(context, { strokeStyle: colour, lineWidth: width, lineCap: "round" });
  context.stroke();
}

const word = (colour, alpha = 1) => // what a pixel of this colour is in an ImageData's memory
  ((Math.round(255 * alpha) << 24) | parseInt(colour.slice(5, 7) + colour.slice(3, 5) + colour.slice(1, 3), 16)) >>> 0;

function render({ model, el }) {
  const root = make("div", el, { className: "alutils-pen", tabIndex: 0 });
  root.dataset.lmSuppressShortcuts = ""; // JupyterLab would take "b" for a new cell
  make("style", root, { textContent: STYLE });
  const [head, tools, looks] = ["", "", ""].map(() => make("div", root));
  const stage = make("div", root, { className: "stage" }), sheet = make("div", stage, { className: "sheet" });
  const photo = make("img", sheet, { draggable: false });
  const [grey, veil, marks] = ["grey", "veil", "marks"].map((className) => make("canvas", sheet, { className }));
  const pen = make("canvas", stage, { className: "pen" }), moves = make("div", root), line = make("div", root);
  make("div", root, { className: "keys", textContent: KEYS });
  line.className = "line";
  line.role = "status";
  const [place, unsaved] = ["place", "unsaved"].map((className) => make("span", head, { className }));

  let view = {}, where, lesion, tool = "brush", stroke = null, drag = null, pending = [], mouse = null, space = false;
  let scale = 1, left = 0, top = 0, fit = 1, touched = 0, shown = null, queued = false, url = "";
  const button = (parent, text, act, title = "") => {
    const made = make("button", parent, { textContent: text, title });
    made.onclick = () => { act(); root.focus({ preventScroll: true }); };
    return made;
  };
  const slider = (text, min, max, value, oninput) => {
    const made = make("input", make("label", looks, { textContent: text }), { type: "range", min, max, step: "any", value });
    made.oninput = oninput;
    made.onchange = () => root.focus({ preventScroll: true });
    return made;
  };
  const send = (act, more = {}) => model.send({ do: act, ...more });
  const choose = (name) => {
    tool = name;
    for (const [key, made] of Object.entries(chosen)) made.ariaPressed = String(key === name);
    refresh();
  };
  const chosen = {};
  for (const name of ["brush", "eraser", "lasso", "lasso eraser"]) chosen[name] = button(tools, name, () => choose(name));
  const [undo, redo, clear] = ["undo", "redo", "clear"].map((act) => button(tools, act, () => send(act)));
  const size = slider("size", 0.002, 0.3, 0.04, () => refresh());
  const opacity = slider("opacity", 0, 1, 0.4, () => showMarks());
  const contrast = slider("contrast", 0.5, 3, 1, () => { photo.style.filter = `contrast(${contrast.value})`; });
  const band = button(looks, "band", () => { band.ariaPressed = String(veil.hidden); grey.hidden = veil.hidden = !veil.hidden; });
  band.ariaPressed = "true";
  button(looks, "−", () => zoom(1 / 1.4), "zoom out");
  button(looks, "+", () => zoom(1.4), "zoom in");
  button(looks, "fit", () => whole());
  const percent = make("span", looks);
  button(moves, "back", () => send("back"));
  button(moves, "skip", () => send("skip"));
  button(moves, "accept as proposed", () => send("accept"));
  button(moves, "save and next", () => send("save")).className = "save";

  // Where things are
  const erases = (name) => name.endsWith("eraser"), isBrush = (name) => !name.startsWith("lasso");
  const pixel = () => Math.max(view.native[0] / view.size[0], view.native[1] / view.size[1]); // one of the mask's
  const radius = () => Math.max((size.value * Math.max(...view.native)) / 2, 0.71 * pixel()); // covers one at least
  const inMask = ([x, y]) => [(x * view.size[0]) / view.native[0] - 0.5, (y * view.size[1]) / view.native[1] - 0.5];
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale];
  };
  function whole() {
    fit = Math.min(stage.clientWidth / view.native[0], stage.clientHeight / view.native[1]);
    scale = fit;
    [left, top] = [(stage.clientWidth - fit * view.native[0]) / 2, (stage.clientHeight - fit * view.native[1]) / 2];
    refresh();
  }
  function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) { // x, y in the stage stay in place
    const next = Math.min(Math.max(scale * factor, fit / 2), Math.max(40 * fit, 4));
    [left, top] = [x - ((x - left) * next) / scale, y - ((y - top) * next) / scale];
    scale = next;
    refresh();
  }
  function move(x, y) { left += x; top += y; refresh(); }

  // What is seen
  function refresh() { // at the next frame
    if (!queued) requestAnimationFrame(() => { queued = false; frame(); });
    queued = true;
  }
  function frame() {
    sheet.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    photo.style.imageRendering = scale > 3 ? "pixelated" : "auto";
    percent.textContent = `${Math.round(100 * scale)} %`;
    const ratio = window.devicePixelRatio || 1, context = pen.getContext("2d");
    [pen.width, pen.height] = [stage.clientWidth * ratio, stage.clientHeight * ratio]; // which clears it
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * left, ratio * top);
    for (const one of stroke ? [...pending, stroke] : pending) {
      context.globalAlpha = 0.6;
      context.strokeStyle = erases(one.tool) ? WHITE : ORANGE;
      Object.assign(context, { lineJoin: "round", lineCap: "round" });
      context.lineWidth = isBrush(one.tool) ? 2 * one.radius : 2 / scale;
      context.beginPath();
      for (const point of [one.points[0], ...one.points]) context.lineTo(...point);
      context.stroke();
    }
    if (mouse && isBrush(tool)) {
      context.globalAlpha = 1;
      for (const [colour, width] of [["black", 3], ["white", 1.5]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: width / scale });
        context.beginPath();
        context.arc(...mouse, radius(), 0, 7);
        context.stroke();
      }
    }
  }
  function showMarks() {
    const orange = word(ORANGE, opacity.value), mine = lesion.map((bit, i) => bit & where[i]);
    paint(marks, view.size, (i) => (mine[i] ? orange : 0));
    outline(marks, view.size, mine, ORANGE, Math.max(2, marks.width / 500));
  }
  function showBand() {
    const [light, dark, plain] = [word(WHITE, 0.5), word(DARK, 0.5), word("#808080")];
    paint(grey, view.size, (i) => (where[i] ? 0 : plain));
    paint(veil, view.size, (i) => (where[i] ? 0 : lesion[i] ? light : dark));
    outline(veil, view.size, where, BLUE, Math.max(2, veil.width / 500));
  }
  function update() {
    view = model.get("view");
    const n = view.size[0] * view.size[1], fresh = shown !== view.place;
    pending.splice(0, pending.findIndex((one) => one.id === view.received) + 1);
    lesion = unpack(model.get("lesion"), n);
    if (fresh) {
      where = unpack(model.get("where"), n);
      URL.revokeObjectURL(url);
      photo.src = url = URL.createObjectURL(new Blob([model.get("picture")]));
      photo.alt = view.place;
      const shrink = Math.min(1, LARGEST / Math.max(...view.native));
      const grow = Math.max(1, Math.ceil(800 / Math.max(...view.native))) * shrink; // lines on a small picture are thin too
      for (const layer of [grey, veil, marks]) [layer.width, layer.height] = view.native.map((side) => Math.round(grow * side));
      [sheet.style.width, sheet.style.height] = view.native.map((side) => `${side}px`);
      [shown, stroke, pending] = [view.place, null, []];
      showBand();
      if (stage.clientWidth) whole();
    }
    showMarks();
    place.textContent = view.place;
    unsaved.textContent = view.done || (view.unsaved ? "● unsaved changes" : "");
    unsaved.className = view.done ? "done" : "unsaved";
    line.textContent = view.line;
    [undo.disabled, redo.disabled, clear.disabled] = [!view.undo, !view.redo, !view.undo];
    refresh();
  }

  // The mouse
  stage.onpointerdown = (event) => {
    event.preventDefault();
    root.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    if (event.button || space) drag = [event.clientX, event.clientY];
    else stroke = { tool, radius: radius(), points: [at(event)], id: Math.random() };
    refresh();
  };
  stage.onpointermove = (event) => {
    mouse = at(event);
    if (drag) { move(event.clientX - drag[0], event.clientY - drag[1]); drag = [event.clientX, event.clientY]; }
    if (stroke) {
      const step = isBrush(stroke.tool) ? Math.max(stroke.radius / 4, pixel() / 5) : pixel() / 10, parts = event.getCoalescedEvents();
      for (const point of parts.length ? parts.map(at) : [mouse]) {
        const [x, y] = stroke.points.at(-1);
        if (Math.hypot(point[0] - x, point[1] - y) >= step) stroke.points.push(point);
      }
    }
    if (Date.now() - touched > 1000) { touched = Date.now(); send("touch"); }
    refresh();
  };
  stage.onlostpointercapture = () => { // the button was released, wherever the mouse is
    if (stroke) {
      const one = stroke, r = one.radius;
      const shape = isBrush(one.tool) ? { radius: [(r * view.size[0]) / view.native[0], (r * view.size[1]) / view.native[1]] } : {};
      pending.push(one);
      send("stroke", { id: one.id, corners: one.points.map(inMask), erase: erases(one.tool), ...shape });
      setTimeout(() => { if (pending.includes(one)) line.textContent = "Waiting for the kernel, which is busy or gone"; }, 3000);
    }
    stroke = drag = null;
    refresh();
  };
  stage.onpointerleave = () => { mouse = null; refresh(); };
  stage.oncontextmenu = (event) => event.preventDefault();
  stage.addEventListener("wheel", (event) => {
    if (!root.contains(document.activeElement)) return; // whoever scrolls through the notebook goes on
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoom(Math.exp(-0.0015 * event.deltaY), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });

  // The keys
  const resize = (factor) => { size.value *= factor; refresh(); };
  const keys = {
    b: () => choose("brush"), e: () => choose("eraser"), l: () => choose("lasso"), x: () => choose("lasso eraser"),
    "[": () => resize(1 / 1.25), "]": () => resize(1.25), v: () => band.click(), "+": () => zoom(1.4), "=": () => zoom(1.4),
    "-": () => zoom(1 / 1.4), 0: whole, 1: () => zoom(1 / scale), p: () => send("back"), n: () => send("skip"),
    a: () => send("accept"), enter: () => send("save"), " ": () => { space = true; }, arrowleft: () => move(40, 0),
    arrowright: () => move(-40, 0), arrowup: () => move(0, 40), arrowdown: () => move(0, -40),
  };
  root.onkeydown = (event) => {
    const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    event.stopPropagation();
    if (event.target !== root && ["enter", " ", "arrowleft", "arrowright"].includes(key)) return; // a button's or a slider's
    const act = command ? { z: () => send(event.shiftKey ? "redo" : "undo"), y: () => send("redo") }[key] : keys[key];
    if (!act || event.altKey || stroke || (event.repeat && ["a", "n", "p", "enter"].includes(key))) return;
    event.preventDefault();
    act();
  };
  root.onkeyup = (event) => { if (event.key === " ") space = false; };
  root.onblur = () => { space = false; };

  choose("brush");
  update();
  model.on("change", update);
  const watch = new ResizeObserver(() => whole());
  watch.observe(stage);
  return () => { model.off("change", update); watch.disconnect(); URL.revokeObjectURL(url); };
}

export default { render };
