// What keys do while a case is read. With Ctrl, Alt or the system's key they stay the browser's.

import { valueOfKey } from "./questions.js";

const ZOOM = 1.25;
const after = (list, value) => list[(list.indexOf(value) + 1) % list.length];

/**
 * What a key press does; undefined if it stays the browser's.
 * @param {KeyboardEvent} event
 * @param {import("./reader.js").Reading} reading
 */
export function actionOf(event, reading) {
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  // A button or slider that was reached with Tab keeps its own keys.
  const { target, key } = event;
  if (target.matches?.("button, select, input") && ["Enter", " "].includes(key)) return undefined;
  if (target.matches?.("select")) return undefined;
  if (target.matches?.("input") && /^(Arrow|Page|Home|End)/.test(key)) return undefined;
  return pageAction(event, reading) ?? viewAction(event, reading) ?? answerAction(key, reading);
}

function pageAction({ key, repeat }, reading) {
  return {
    Enter: () => !repeat && reading.next(),
    Backspace: () => !repeat && reading.back(),
    p: () => reading.pause(),
    h: () => reading.help(),
    "?": () => reading.help(),
  }[key];
}

function viewAction({ key, shiftKey }, reading) {
  const { viewer, presets, study } = reading;
  if (!reading.ready) return undefined;
  const aside = (direction) => {
    if (reading.current.kind === "score") reading.stepScore(direction * (shiftKey ? 10 : 1));
    else viewer.scroll(direction);
  };
  return {
    ArrowUp: () => viewer.scroll(-1),
    ArrowDown: () => viewer.scroll(1),
    ArrowLeft: () => aside(-1),
    ArrowRight: () => aside(1),
    PageUp: () => viewer.scroll(-5),
    PageDown: () => viewer.scroll(5),
    Home: () => viewer.setSlice(0),
    End: () => viewer.setSlice(viewer.numSlices - 1),
    v: () => viewer.setView(after(["stack", "planes"], viewer.view)),
    t: () => viewer.setTool(after(["navigate", "window", "pan"], viewer.tool)),
    w: () => viewer.setWindow(presets[after(Object.keys(presets), reading.preset)]),
    c: () => viewer.toggleCrosshair(),
    r: () => viewer.reset(study.window),
    "+": () => viewer.zoom(ZOOM),
    "=": () => viewer.zoom(ZOOM),
    "-": () => viewer.zoom(1 / ZOOM),
  }[key];
}

function answerAction(key, reading) {
  if (!reading.ready || !/^[0-9]$/.test(key)) return undefined;
  if (reading.current.kind === "score") return () => reading.typeScore(key);
  const value = valueOfKey(reading.current, key);
  return value === undefined ? undefined : () => reading.answer(reading.question, value);
}
