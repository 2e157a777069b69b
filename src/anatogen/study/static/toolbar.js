// The controls around the volume: view, what dragging does, window, zoom, slice.

import { element } from "./questions.js";

const $ = (id) => document.getElementById(id);
const ZOOM = 1.25;
// Values shown as black and white, made from the study's own window; of CT in Hounsfield units.
const PRESETS = {
  MR: ([low, high]) => ({
    "Whole range": [low, high],
    "More contrast": [low + 0.15 * (high - low), low + 0.75 * (high - low)],
    "Dark tissue": [low, low + 0.5 * (high - low)],
    "Bright tissue": [low + 0.4 * (high - low), high],
  }),
  CT: (window) => ({
    "Whole range": window, "Soft tissue": [-160, 240], Lung: [-1350, 150], Bone: [-450, 1050], Brain: [0, 80],
  }),
};

export function presetsOf(modality, window) {
  return PRESETS[modality](window);
}

/** The preset that is shown, if it is one. */
export function presetOf(viewer, presets) {
  const [low, high] = viewer.window;
  const near = ([a, b]) => Math.abs(a - low) + Math.abs(b - high) < 0.01;
  return Object.keys(presets).find((name) => near(presets[name]));
}

/** Ties the controls to the viewer. */
export function listenToToolbar(viewer, presets, window) {
  const drawn = (act) => (event) => viewer.drawn.length > 0 && act(event.currentTarget);
  const onClick = (id, act) => $(id).addEventListener("click", drawn(act));
  for (const button of $("view").children) {
    button.addEventListener("click", drawn(() => viewer.setView(button.dataset.value)));
  }
  for (const button of $("tool").children) {
    button.addEventListener("click", drawn(() => viewer.setTool(button.dataset.value)));
  }
  $("preset").replaceChildren(...Object.keys(presets).map((name) => element("option", {}, name)));
  $("preset").addEventListener("change", drawn((select) => {
    viewer.setWindow(presets[select.value]);
    // So that the next keys scroll and answer.
    select.blur();
  }));
  onClick("zoom-in", () => viewer.zoom(ZOOM));
  onClick("zoom-out", () => viewer.zoom(1 / ZOOM));
  onClick("crosshair", () => viewer.toggleCrosshair());
  onClick("reset", () => viewer.reset(window));
  $("slice").addEventListener("input", drawn((slider) => viewer.setSlice(Number(slider.value) - 1)));
}

/** Shows the viewer's state. */
export function drawToolbar(viewer, presets) {
  for (const [id, value] of [["view", viewer.view], ["tool", viewer.tool]]) {
    for (const button of $(id).children) {
      button.setAttribute("aria-pressed", String(button.dataset.value === value));
    }
  }
  $("crosshair").setAttribute("aria-pressed", String(viewer.crosshair[viewer.view]));
  if (viewer.drawn.length === 0) return;
  $("slice").max = viewer.numSlices;
  $("slice").value = viewer.slice + 1;
  $("slice-text").textContent = `${viewer.slice + 1} of ${viewer.numSlices}`;
  const [low, high] = viewer.window;
  $("window").textContent = `W ${Math.round(high - low)}   L ${Math.round((low + high) / 2)}`;
  $("preset").value = presetOf(viewer, presets) ?? "";
}
