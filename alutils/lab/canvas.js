// The drawing tool in the browser: it draws strokes at once, sends the finished ones to annotator.py, and shows the mask
// that comes back. Points are in pixels of the picture, from its upper left corner; those sent are in pixels of the mask.

const ORANGE = "#E69F00", BLUE = "#0072B2", WHITE = "#F5F5F5", DARK = "#303030";
const LARGEST = 2048; // pixels, the sides of the layers over a photograph
const HELP = "Only the coloured pixels are yours, what you marked is orange; the grey rest is the model's, its lesion lighter.";
const KEYS = "B brush · E eraser · L lasso · X lasso eraser · [ ] size · V band · wheel or + − zoom · 0 fit · 1 full size · " +
  "Space or right button and drag, or arrows: move · Ctrl+Z undo · Ctrl+Shift+Z or Ctrl+Y redo · P back · N skip · " +
  "A accept as proposed · Enter save and next";

function make(name, parent, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  parent.append(made);
  return made;
}

const unpack = (data, n) => // numpy.packbits undone
  new Uint8Array(n).map((_, i) => (data.getUint8(i >> 3) >> (7 - (i & 7))) & 1);

const word = (colour, alpha = 1) => // what a pixel of this colour is in an ImageData's memory
  ((Math.round(255 * alpha) << 24) | parseInt(colour.slice(5, 7) + colour.slice(3, 5) + colour.slice(1, 3), 16)) >>> 0;

function paint(canvas, [w, h], colourOf) { // a word per pixel of the mask
  const small = new OffscreenCanvas(w, h), context = canvas.getContext("2d"), pixels = new ImageData(w, h);
  new Uint32Array(pixels.data.buffer).forEach((_, i, words) => { words[i] = colourOf(i); });
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function outline(canvas, [w, h], bits, strokeStyle) { // along the edges of the pixels
  const context = canvas.getContext("2d"), a = canvas.width / w, b = canvas.height / h;
  const edge = (x, y, right, down) => { context.moveTo(x * a, y * b); context.lineTo((x + right) * a, (y + down) * b); };
  context.beginPath();
  for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++) {
    if (x + 1 < w && bits[i] !== bits[i + 1]) edge(x + 1, y, 0, 1);
    if (y + 1 < h && bits[i] !== bits[i + w]) edge(x, y + 1, 1, 0);
  }
  Object.assign(context, { strokeStyle, lineWidth: Math.max(2, canvas.width / 500), lineCap: "round" }).stroke();
}

function render({ model, el }) {
  const root = make("div", el, { className: "alutils-pen", tabIndex: 0 }), focus = () => root.focus({ preventScroll: true });
  root.dataset.lmSuppressShortcuts = root.dataset.jpSuppressContextMenu = ""; // JupyterLab would take "b" for a new cell
  const [head, tools, looks] = [1, 2, 3].map(() => make("div", root)), stage = make("div", root, { className: "stage" });
  const sheet = make("div", stage, { className: "sheet" }), photo = make("img", sheet, { draggable: false });
  const [grey, veil, marks] = ["grey", "veil", "marks"].map((className) => make("canvas", sheet, { className }));
  const pen = make("canvas", stage, { className: "pen" }), steps = make("div", root);
  const line = make("div", root, { role: "status" }), place = make("b", head), news = make("b", head, { className: "news" });
  for (const textContent of [HELP, KEYS]) make("div", root, { className: "keys", textContent });

  let view, where, lesion, tool, shown, queued, url, scale, left, top, fit, stroke, drag, mouse, space, pending = [], touched = 0;
  const send = (act, more = {}) => model.send({ do: act, ...more });
  const button = (parent, textContent, act, className = "") =>
    make("button", parent, { textContent, className, onclick: () => { act(); focus(); } });
  const slider = (textContent, min, max, value, oninput) => Object.assign(
    make("input", make("label", looks, { textContent }), { type: "range", min, max, step: "any", oninput, onchange: focus }),
    { value });
  const choose = (name) => {
    tool = name;
    for (const key in chosen) chosen[key].ariaPressed = String(key === name);
    refresh();
  };
  const chosen = {};
  for (const name of ["brush", "eraser", "lasso", "lasso eraser"]) chosen[name] = button(tools, name, () => choose(name));
  const [undo, redo, clear] = ["undo", "redo", "clear"].map((act) => button(tools, act, () => send(act)));
  const size = slider("size", 0.002, 0.3, 0.04, refresh), opacity = slider("opacity", 0, 1, 0.4, showMarks);
  const contrast = slider("contrast", 0.5, 3, 1, () => { photo.style.filter = `contrast(${contrast.value})`; });
  const band = button(looks, "band", () => { band.ariaPressed = String(veil.hidden); grey.hidden = veil.hidden = !veil.hidden; });
  band.ariaPressed = "true";
  for (const [text, act] of [["−", () => zoom(1 / 1.4)], ["+", () => zoom(1.4)], ["fit", whole]]) button(looks, text, act);
  const percent = make("small", looks);
  for (const [text, act] of [["back", "back"], ["skip", "skip"], ["accept as proposed", "accept"], ["save and next", "save"]])
    button(steps, text, () => send(act), act);

  // Where things are
  const erases = (name) => name.endsWith("eraser"), isBrush = (name) => !name.startsWith("lasso");
  const inMask = ([x, y]) => [(x * view.size[0]) / view.native[0] - 0.5, (y * view.size[1]) / view.native[1] - 0.5];
  const pixel = () => Math.max(view.native[0] / view.size[0], view.native[1] / view.size[1]); // one of the mask's
  const radius = () => Math.max((size.value * Math.max(...view.native)) / 2, 0.71 * pixel()); // covers one at least
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale];
  };
  function whole() {
    scale = fit = Math.min(stage.clientWidth / view.native[0], stage.clientHeight / view.native[1]);
    [left, top] = [(stage.clientWidth - fit * view.native[0]) / 2, (stage.clientHeight - fit * view.native[1]) / 2];
    refresh();
  }
  function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) { // x, y in the stage stay in place
    const next = Math.min(Math.max(scale * factor, fit / 2), Math.max(40 * fit, 4));
    [left, top, scale] = [x - ((x - left) * next) / scale, y - ((y - top) * next) / scale, next];
    refresh();
  }
  const move = (x, y) => { left += x; top += y; refresh(); };

  // What is seen
  function refresh() { queued ||= requestAnimationFrame(frame); }
  function frame() {
    queued = 0;
    sheet.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    photo.style.imageRendering = scale > 3 ? "pixelated" : "auto";
    percent.textContent = `${Math.round(100 * scale)} %`;
    const ratio = window.devicePixelRatio, context = pen.getContext("2d");
    [pen.width, pen.height] = [stage.clientWidth * ratio, stage.clientHeight * ratio]; // which clears it
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * left, ratio * top);
    Object.assign(context, { lineJoin: "round", lineCap: "round", globalAlpha: 0.6 });
    for (const one of stroke ? [...pending, stroke] : pending) {
      context.beginPath();
      for (const point of [one.points[0], ...one.points]) context.lineTo(...point);
      const lineWidth = isBrush(one.tool) ? 2 * one.radius : 2 / scale;
      Object.assign(context, { strokeStyle: erases(one.tool) ? WHITE : ORANGE, lineWidth }).stroke();
    }
    if (!mouse || !isBrush(tool)) return;
    context.beginPath();
    context.arc(...mouse, radius(), 0, 7);
    for (const [strokeStyle, width] of [["black", 3], ["white", 1.5]])
      Object.assign(context, { strokeStyle, lineWidth: width / scale, globalAlpha: 1 }).stroke();
  }
  function showMarks() {
    const orange = word(ORANGE, opacity.value), mine = lesion.map((bit, i) => bit & where[i]);
    paint(marks, view.size, (i) => (mine[i] ? orange : 0));
    outline(marks, view.size, mine, ORANGE);
  }
  function showImage() {
    const [light, dark, plain] = [word(WHITE, 0.5), word(DARK, 0.5), word("#808080")], longest = Math.max(...view.native);
    const detail = Math.min(1, LARGEST / longest) * Math.max(1, Math.ceil(800 / longest)); // so that lines are thin on all
    URL.revokeObjectURL(url);
    Object.assign(photo, { src: url = URL.createObjectURL(new Blob([model.get("picture")])), alt: view.place });
    [sheet.style.width, sheet.style.height] = view.native.map((side) => `${side}px`);
    for (const layer of [grey, veil, marks]) [layer.width, layer.height] = view.native.map((side) => Math.round(detail * side));
    paint(grey, view.size, (i) => (where[i] ? 0 : plain));
    paint(veil, view.size, (i) => (where[i] ? 0 : lesion[i] ? light : dark));
    outline(veil, view.size, where, BLUE);
    whole();
  }
  function update() {
    view = model.get("view");
    lesion = unpack(model.get("lesion"), view.size[0] * view.size[1]);
    pending.splice(0, pending.findIndex((one) => one.id === view.received) + 1);
    if (shown !== view.place) {
      where = unpack(model.get("where"), lesion.length);
      [shown, stroke, pending] = [view.place, null, []];
      showImage();
    }
    showMarks();
    [place.textContent, news.textContent, line.textContent] = [view.place, view.news, view.line];
    [undo.disabled, redo.disabled, clear.disabled] = [!view.undo, !view.redo, !view.undo];
    refresh();
  }

  // The mouse
  stage.onpointerdown = (event) => {
    event.preventDefault();
    focus();
    stage.setPointerCapture(event.pointerId);
    if (event.button || space) drag = [event.clientX, event.clientY];
    else stroke = { tool, radius: radius(), points: [at(event)], id: Math.random() };
    refresh();
  };
  stage.onpointermove = (event) => {
    if (drag) move(event.clientX - drag[0], event.clientY - drag[1]);
    drag &&= [event.clientX, event.clientY];
    mouse = at(event);
    const step = stroke && isBrush(stroke.tool) ? Math.max(stroke.radius / 4, pixel() / 5) : pixel() / 10;
    for (const [x, y] of stroke ? [...(event.getCoalescedEvents?.() ?? []).map(at), mouse] : []) {
      const [lastX, lastY] = stroke.points.at(-1);
      if (Math.hypot(x - lastX, y - lastY) >= step) stroke.points.push([x, y]);
    }
    if (Date.now() - touched > 1000) { touched = Date.now(); send("touch"); }
    refresh();
  };
  stage.onlostpointercapture = () => { // the button was released, wherever the mouse is
    if (stroke) {
      const one = stroke, radius = view.size.map((side, i) => (one.radius * side) / view.native[i]);
      pending.push(one);
      send("stroke", { id: one.id, corners: one.points.map(inMask), erase: erases(one.tool), ...(isBrush(one.tool) && { radius }) });
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
    if (event.target !== root && /enter|arrow|^ $/.test(key)) return; // a button's or a slider's
    const act = command ? { z: () => send(event.shiftKey ? "redo" : "undo"), y: () => send("redo") }[key] : keys[key];
    if (!act || event.altKey || stroke || (event.repeat && ["a", "n", "p", "enter"].includes(key))) return;
    event.preventDefault();
    act();
  };
  root.onkeyup = root.onblur = (event) => { space &&= event.type === "keyup" && event.key !== " "; };

  choose("brush");
  update();
  model.on("change", update);
  const watch = new ResizeObserver(whole);
  watch.observe(stage);
  return () => { model.off("change", update); watch.disconnect(); URL.revokeObjectURL(url); };
}
export default { render };
