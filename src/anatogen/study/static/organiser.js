// The organiser's page: how far each reader is. Answers only when all are done, or when asked for.

import { call, Refused } from "./api.js";
import { element } from "./questions.js";

const SECONDS = 5;
const $ = (id) => document.getElementById(id);

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function row(reader) {
  const done = reader.num_done === reader.num_items;
  const state = done ? "done" : reader.paused ? "paused" : "";
  const last = reader.last_answer_at === null ? "–" : new Date(reader.last_answer_at).toLocaleString();
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, reader.name, element("span", { class: `badge ${state}` }, state)),
    element(
      "td",
      { class: "grow" },
      element("progress", { max: reader.num_items, value: reader.num_done, "aria-label": reader.name }),
      element("span", {}, `${reader.num_done} of ${reader.num_items}`),
    ),
    element("td", {}, duration(reader.seconds_active)),
    element("td", {}, last),
  );
}

function draw({ title, readers }) {
  const open = readers.filter((reader) => reader.num_done < reader.num_items).length;
  $("title").textContent = document.title = title;
  $("summary").textContent =
    open === 0 ? "All readers are done." : `${readers.length - open} of ${readers.length} readers are done.`;
  $("readers").replaceChildren(...readers.map(row));
  $("answers-text").textContent =
    open === 0
      ? "Every case is answered."
      : "Not everyone is done. Who sees answers early may stop a study when they look right, or talk to readers.";
  $("early-label").hidden = open === 0;
  $("download").disabled = open > 0 && !$("early").checked;
}

async function download() {
  const response = await call(`/api/answers.csv?early=${$("early").checked}`);
  const link = element("a", { href: URL.createObjectURL(await response.blob()), download: "answers.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function refresh() {
  try {
    draw(await (await call("/api/progress")).json());
  } catch (error) {
    $("summary").textContent = error instanceof Refused ? error.message : "No connection to the study.";
  }
}

$("early").addEventListener("change", refresh);
$("download").addEventListener("click", () => download().catch((error) => {
  $("answers-text").textContent = `The answers could not be downloaded: ${error.message}`;
}));
refresh();
setInterval(refresh, 1000 * SECONDS);
