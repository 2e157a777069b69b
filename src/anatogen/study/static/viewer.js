// One volume, or two side by side, drawn by NiiVue. The mouse, the wheel and fingers are handled here, so that
// they do the same in every view and to both volumes of a pair.

import { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "./niivue/index.js";

// By axis of the volume: left-right, back-front, down-up.
const PLANES = [SLICE_TYPE.SAGITTAL, SLICE_TYPE.CORONAL, SLICE_TYPE.AXIAL];
const OPTIONS = {
  // Handled here.
  interactive: false,
  dragAndDropEnabled: false,
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.56, 0.71, 0.91, 0.85],
  fontColor: [0.93, 0.73, 0.38, 1],
  // As radiologists hang pictures: the patient's right on the left.
  isRadiologicalConvention: true,
  crosshairWidthUnit: "percent",
  loadingText: "",
  logLevel: "error",
  multiplanarShowRender: SHOW_RENDER.NEVER,
  multiplanarPadPixels: 6,
  isColorbar: false,
  // Volumes are drawn from what came with the study alone.
  trustCalMinMax: false,
};
const CROSSHAIR_WIDTH = 0.4;
const NOTCH = 50;
const PIXELS_A_SLICE = 8;

export class Viewer {
  /**
   * @param {HTMLElement[]} panes Each with a canvas.
   * @param {() => void} onChange Told after every change of slice, window or view.
   */
  constructor(panes, onChange) {
    this.panes = panes;
    this.onChange = onChange;
    this.view = "stack";
    this.tool = "navigate";
    this.crosshair = { stack: false, planes: true };
    this.window = [0, 1];
    this.drawn = [];
    this.scrolled = 0;
    this.pending = false;
  }

  /** @throws {Error} If the browser can't draw volumes. */
  async start() {
    const probe = document.createElement("canvas").getContext("webgl2");
    if (probe === null) throw new Error("this browser has no WebGL 2");
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    this.niivues = [];
    for (const pane of this.panes) {
      const canvas = pane.querySelector("canvas");
      const niivue = new Niivue(OPTIONS);
      await niivue.attachToCanvas(canvas, true);
      this.niivues.push(niivue);
      this.#listen(niivue, canvas);
    }
  }

  /**
   * Shows volumes in the middle slice, with the study's window.
   * @param {ArrayBuffer[]} files NIfTI, one or two.
   * @param {number[]} window Values shown as black and white.
   */
  async show(files, window) {
    const images = await Promise.all(
      files.map((buffer) => NVImage.loadFromUrl({ url: "volume.nii", name: "volume.nii", buffer })),
    );
    this.clear();
    this.panes.forEach((pane, index) => {
      pane.hidden = index >= files.length;
      pane.querySelector(".side").hidden = files.length < 2;
    });
    this.drawn = this.niivues.slice(0, images.length);
    this.drawn.forEach((niivue, index) => {
      niivue.addVolume(images[index]);
    });
    const volume = images[0];
    // NiiVue turns volumes so that axes run right, front, up; the file's third axis is the one between slices.
    this.axis = volume.permRAS.findIndex((from) => Math.abs(from) === 3);
    this.flipped = volume.permRAS[this.axis] < 0;
    this.shape = volume.dimsRAS.slice(1, 4);
    this.reset(window);
  }

  clear() {
    for (const niivue of this.niivues) {
      for (const volume of [...niivue.volumes]) niivue.removeVolume(volume);
    }
    this.drawn = [];
  }

  reset(window) {
    this.position = this.shape.map((length) => (Math.floor(length / 2) + 0.5) / length);
    this.pan = [0, 0, 0, 1];
    this.window = [...window];
    this.#restyle();
    this.setSlice(Math.floor(this.numSlices / 2));
  }

  get numSlices() {
    return this.shape[this.axis];
  }

  /** Of the stack, from 0, in the order of the file. */
  get slice() {
    const index = Math.min(this.numSlices - 1, Math.floor(this.position[this.axis] * this.numSlices));
    return this.flipped ? this.numSlices - 1 - index : index;
  }

  setSlice(slice) {
    const last = this.numSlices - 1;
    const index = Math.min(last, Math.max(0, slice));
    this.position[this.axis] = ((this.flipped ? last - index : index) + 0.5) / this.numSlices;
    this.#redraw();
  }

  /** Moves by slices of the stack, or of another axis. */
  scroll(steps, axis = this.axis) {
    if (axis === this.axis) return this.setSlice(this.slice + steps);
    const length = this.shape[axis];
    const index = Math.floor(this.position[axis] * length) + steps;
    this.position[axis] = (Math.min(length - 1, Math.max(0, index)) + 0.5) / length;
    this.#redraw();
  }

  setView(view) {
    this.view = view;
    this.#restyle();
    this.#redraw();
  }

  setTool(tool) {
    this.tool = tool;
    this.onChange();
  }

  toggleCrosshair() {
    this.crosshair[this.view] = !this.crosshair[this.view];
    this.#restyle();
    this.#redraw();
  }

  /** @param {number[]} window Values shown as black and white. */
  setWindow([low, high]) {
    const width = Math.max(1, high - low);
    const middle = (low + high) / 2;
    this.window = [middle - width / 2, middle + width / 2];
    this.#restyle();
    this.#redraw();
  }

  zoom(factor) {
    const before = this.pan[3];
    const after = Math.min(12, Math.max(0.5, before * factor));
    // The crosshair's place stays where it is.
    const place = this.drawn[0].frac2mm(this.position);
    this.pan = [0, 1, 2].map((axis) => this.pan[axis] + (before - after) * place[axis]).concat(after);
    this.#redraw();
  }

  #restyle() {
    for (const niivue of this.drawn) {
      niivue.opts.sliceType = this.view === "planes" ? SLICE_TYPE.MULTIPLANAR : PLANES[this.axis];
      niivue.opts.crosshairWidth = this.crosshair[this.view] ? CROSSHAIR_WIDTH : 0;
    }
    this.windowChanged = true;
  }

  /** Draws in the next frame, once for all that changes until then. */
  #redraw() {
    this.onChange();
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      for (const niivue of this.drawn) {
        niivue.scene.crosshairPos = [...this.position];
        niivue.scene.pan2Dxyzmm = [...this.pan];
        if (this.windowChanged) {
          [niivue.volumes[0].cal_min, niivue.volumes[0].cal_max] = this.window;
          niivue.updateGLVolume();
        }
        niivue.drawScene();
      }
      this.windowChanged = false;
    });
  }

  #listen(niivue, canvas) {
    const fingers = new Map();
    let mode = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      if (this.drawn.length === 0) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, at(event));
      this.scrolled = 0;
      mode = fingers.size > 1 ? "pinch" : this.#mode(event);
      if (mode === "cross") this.#point(niivue, at(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!fingers.has(event.pointerId) || this.drawn.length === 0) return;
      const before = [...fingers.values()];
      const from = fingers.get(event.pointerId);
      const to = at(event);
      fingers.set(event.pointerId, to);
      if (mode === "pinch") this.#pinch(niivue, before, [...fingers.values()]);
      else this.#drag(niivue, mode, from, to);
    });
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => {
        fingers.delete(event.pointerId);
        if (fingers.size === 0) mode = null;
      });
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (this.drawn.length === 0) return;
      if (event.ctrlKey) return this.zoom(Math.exp(-event.deltaY / (Math.abs(event.deltaY) > NOTCH ? 500 : 100)));
      this.#wheel(event, this.#axisAt(niivue, at(event)));
    }, { passive: false });
  }

  /** What a drag that begins with this event does. */
  #mode(event) {
    if (event.button === 2) return "window";
    if (event.button === 1 || event.shiftKey) return "pan";
    if (this.tool !== "navigate") return this.tool;
    return this.view === "planes" || this.crosshair.stack ? "cross" : "scroll";
  }

  #drag(niivue, mode, from, to) {
    const [right, down] = [to[0] - from[0], to[1] - from[1]];
    if (mode === "window") {
      // Across the whole width the window grows by four times itself; up makes brighter.
      const width = this.window[1] - this.window[0];
      const level = (this.window[0] + this.window[1]) / 2 + (down * width) / 300;
      const wider = width * Math.exp(right / 250);
      this.setWindow([level - wider / 2, level + wider / 2]);
    } else if (mode === "pan") this.#move(niivue, from, to);
    else if (mode === "cross") this.#point(niivue, to);
    else if (mode === "scroll") {
      this.scrolled += down / PIXELS_A_SLICE;
      this.#scrollWhole(this.axis);
    }
  }

  #wheel(event, axis) {
    // A notch of a wheel is one slice, however far it says it went; a trackpad says it in small parts.
    const distance = event.deltaMode === 0 ? event.deltaY : NOTCH * event.deltaY;
    this.scrolled = Math.abs(distance) >= NOTCH ? Math.sign(distance) : this.scrolled + distance / 25;
    this.#scrollWhole(axis);
  }

  #scrollWhole(axis) {
    const steps = Math.trunc(this.scrolled);
    this.scrolled -= steps;
    if (steps !== 0) this.scroll(steps, axis);
  }

  #pinch(niivue, before, after) {
    const [[a, b], [c, d]] = [before, after];
    const apart = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);
    const middle = (p, q) => [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2];
    this.#move(niivue, middle(a, b), middle(c, d));
    if (apart(a, b) > 0) this.zoom(apart(c, d) / apart(a, b));
  }

  #move(niivue, from, to) {
    const scale = niivue.uiData.dpr;
    niivue.uiData.pan2DxyzmmAtMouseDown = [...this.pan];
    niivue.scene.pan2Dxyzmm = [...this.pan];
    niivue.dragForPanZoom([...from, ...to].map((value) => value * scale));
    this.pan = [...niivue.scene.pan2Dxyzmm];
    this.#redraw();
  }

  /** Moves the crosshair to a place of the picture. */
  #point(niivue, place) {
    const found = niivue.canvasPos2frac(place.map((value) => value * niivue.uiData.dpr));
    if (found[0] < 0) return;
    this.position = Array.from(found);
    this.#redraw();
  }

  /** The axis across the plane that lies under a place of the picture. */
  #axisAt(niivue, place) {
    const tile = niivue.tileIndex(...place.map((value) => value * niivue.uiData.dpr));
    const plane = niivue.screenSlices[tile]?.axCorSag;
    const axis = PLANES.indexOf(plane);
    return axis < 0 ? this.axis : axis;
  }
}
