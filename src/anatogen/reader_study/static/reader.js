// The reader's page: goes through the cases, keeps every answer, shows what is going on.

import { call, Refused, wait } from "./api.js";
import { Clock } from "./clock.js";
import { Outbox } from "./outbox.js";
import { drawQuestions, element, Typed, valueOfKey } from "./questions.js";
import { Sheet } from "./sheet.js";
import { Viewer } from "./viewer.js";
import { Volumes } from "./volumes.js";

const $ = (id) => document.getElementById(id);
const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const PRESETS = {
  MR: ([low, high]) => ({
    "Whole range": [low, high],
    "More contrast": [low + 0.15 * (high - low), low + 0.75 * (high - low)],
    "Dark tissue": [low, low + 0.5 * (high - low)],
    "Bright tissue": [low + 0.4 * (high - low), high],
  }),
  CT: ([low, high]) => ({
    "Whole range": [low, high], "Soft tissue": [-160, 240], Lung: [-1350, 150], Bone: [-450, 1050],
    Brain: [0, 80],
  }),
};

class Reading {
  constructor(study) {
    this.study = study;
    this.protocols = Object.fromEntries(study.protocols.map((protocol) => [protocol.id, protocol]));
    this.items = study.items.map((item) => ({ ...item, active: 0, idle: 0, sent: 0 }));
    this.presets = PRESETS[study.modality](study.window);
    this.name = `${study.study}:${study.reader}`;
    this.index = 0;
    this.question = 0;
    this.turn = 0;
    this.introduced = new Set();
    this.held = null;
    this.ready = false;
    this.typed = new Typed();
    this.clock = new Clock();
    this.volumes = new Volumes((lost) => this.#message(lost ? "No connection to the study. Trying again…" : ""));
    this.viewer = new Viewer([...document.querySelectorAll(".pane")], () => this.#drawViewer());
    this.sheet = new Sheet();
  }

  async start() {
    $("title").textContent = document.title = this.study.title;
    $("preset").replaceChildren(...Object.keys(this.presets).map((name) => element("option", {}, name)));
    this.outbox = new Outbox(this.name, (state) => this.#drawState(state));
    // What this browser kept and the server lacks counts as answered.
    for (const answer of this.outbox.answers()) this.#note(answer);
    for (const item of this.items) {
      const given = Object.values(item.answers);
      item.active = item.sent = Math.max(0, ...given.map((answer) => answer.seconds_active));
      item.idle = Math.max(0, ...given.map((answer) => answer.seconds_idle));
    }
    this.#restoreTime();
    this.#listen();
    setInterval(() => this.#tick(), 1000);
    try {
      await this.viewer.start();
    } catch (error) {
      return this.#message(`Volumes can't be drawn here: ${error.message}. Use a current Chrome, Edge or Firefox.`);
    }
    const first = this.items.findIndex((item) => !this.#isDone(item));
    this.open(first < 0 ? this.items.length : first);
    if (this.study.paused) this.pause();
  }

  get item() {
    return this.items[this.index];
  }

  get protocol() {
    return this.protocols[this.item.protocol];
  }

  #isDone(item) {
    return this.protocols[item.protocol].questions.every((question) => question.id in item.answers);
  }

  /** Takes an answer into what the page shows, if it is the latest. */
  #note(answer) {
    const answers = this.items.find((item) => item.id === answer.item_id)?.answers;
    if (answers && !(answers[answer.question]?.revision > answer.revision)) answers[answer.question] = answer;
  }

  /** Goes to a case; after the last one that is the end. */
  async open(index, question = null) {
    const turn = ++this.turn;
    this.ready = false;
    this.index = index;
    this.viewer.clear();
    if (index >= this.items.length) return this.#finish();
    const open = this.protocol.questions.findIndex((one) => !(one.id in this.item.answers));
    this.question = question ?? Math.max(0, open);
    this.typed.clear();
    this.draw();
    this.#message("Loading…");
    const loading = this.#files(index);
    loading.catch(() => {});
    await this.#introduce();
    try {
      const files = await loading;
      if (turn !== this.turn) return;
      await this.viewer.show(files, this.study.window);
    } catch (error) {
      const reason = error instanceof Refused ? error.message : "it can't be drawn";
      return turn === this.turn && this.#message(`This volume could not be loaded: ${reason}.`);
    }
    if (turn !== this.turn) return;
    this.#message("");
    this.ready = true;
    if (!this.sheet.isOpen) this.clock.start(this.item.active, this.item.idle);
    if (index + 1 < this.items.length) this.#files(index + 1).catch(() => {});
  }

  #files(index) {
    const item = this.items[index];
    const sides = this.protocols[item.protocol].kind === "pair" ? ["left", "right"] : ["left"];
    return this.volumes.of(item.id, sides);
  }

  /** Says what is asked, before the first case of a protocol. */
  async #introduce() {
    const { id, title, instructions } = this.protocol;
    const first = this.items.findIndex((item) => item.protocol === id) === this.index;
    if (!first || this.introduced.has(id) || Object.keys(this.item.answers).length > 0) return;
    this.introduced.add(id);
    const count = this.items.filter((item) => item.protocol === id).length;
    const eyebrow = `${count} ${this.protocol.kind === "pair" ? "pairs" : "cases"}`;
    await this.sheet.show({ eyebrow, title, text: instructions, keys: true, button: "Begin" });
  }

  answer(index, value, { typing = false } = {}) {
    if (!this.ready) return;
    const question = this.protocol.questions[index];
    this.#release();
    const revision = (this.item.answers[question.id]?.revision ?? -1) + 1;
    this.held = { item_id: this.item.id, question: question.id, value, revision };
    this.#note(this.held);
    // A number is whole when no digit follows; everything else is sent at once.
    clearTimeout(this.releasing);
    if (typing) this.releasing = setTimeout(() => this.#release(), 800);
    else this.#release();
    if (question.kind === "choice") {
      const open = this.protocol.questions.findIndex((one) => !(one.id in this.item.answers));
      this.question = open < 0 ? index : open;
      this.typed.clear();
    } else this.question = index;
    this.draw();
  }

  /** Hands the answer that was being typed over to be saved. */
  #release() {
    if (this.held === null) return;
    this.#readClock();
    this.outbox.add({ ...this.held, seconds_active: this.item.active, seconds_idle: this.item.idle });
    this.item.sent = this.item.active;
    this.held = null;
  }

  #readClock() {
    if (!this.clock.running) return;
    const { active, idle } = this.clock.read();
    Object.assign(this.item, { active, idle: Math.min(idle, 9e6) });
  }

  /** Stops the case's time; what was spent since its last answer is sent with that answer once more. */
  #leave() {
    this.#release();
    this.#readClock();
    this.clock.stop();
    const last = Object.values(this.item.answers).at(-1);
    if (last !== undefined && this.item.active - this.item.sent >= 1) {
      const question = Object.keys(this.item.answers).at(-1);
      this.held = { item_id: this.item.id, question, value: last.value, revision: last.revision + 1 };
      this.#note(this.held);
      this.outbox.add({ ...this.held, seconds_active: this.item.active, seconds_idle: this.item.idle });
      this.item.sent = this.item.active;
      this.held = null;
    }
  }

  next() {
    if (!this.ready) return;
    this.#release();
    const open = this.protocol.questions.findIndex((one) => !(one.id in this.item.answers));
    if (open >= 0) {
      this.question = open;
      this.draw();
      this.#say(`Answer first: ${this.protocol.questions[open].text}`);
      $("questions").querySelector("[data-open]")?.animate(
        [{ transform: "translateX(-4px)" }, { transform: "translateX(4px)" }, { transform: "none" }], 180,
      );
      return;
    }
    this.#leave();
    this.open(this.index + 1);
  }

  back() {
    if (this.index >= this.items.length) return;
    if (this.question > 0) {
      this.#release();
      this.question -= 1;
      return this.draw();
    }
    if (this.index === 0) return;
    this.#leave();
    const before = this.protocols[this.items[this.index - 1].protocol];
    this.open(this.index - 1, before.questions.length - 1);
  }

  async pause() {
    if (this.index >= this.items.length) return;
    const reading = this.ready;
    if (reading) this.#leave();
    this.#sendPaused(true);
    await this.sheet.show({
      eyebrow: "Time is not counted", title: "Paused", button: "Go on", curtain: true,
      text: "Your answers are kept. You can close this window and open your link again later.",
    });
    this.#sendPaused(false);
    if (this.ready) this.clock.start(this.item.active, this.item.idle);
  }

  async #sendPaused(paused) {
    this.paused = paused;
    while (this.paused === paused) {
      try {
        return await call("/api/pause", { json: { paused } });
      } catch (error) {
        if (error instanceof Refused && !error.passes) return;
        await wait(3);
      }
    }
  }

  async help() {
    if (this.ready) this.#leave();
    await this.sheet.show({ eyebrow: "Help", title: "Keys and mouse", text: "", keys: true, button: "Close" });
    if (this.ready) this.clock.start(this.item.active, this.item.idle);
  }

  async #finish() {
    this.draw();
    this.#message("");
    await this.sheet.show({
      eyebrow: "Finished", title: "All cases are answered. Thank you.", text: this.#ending(), curtain: true,
      button: "Look at my answers again",
    });
    this.open(this.items.length - 1, 0);
  }

  #ending() {
    const waiting = this.outbox.answers().length;
    if (waiting === 0) return "Everything is saved. You can close this window.";
    return `Keep this window open: ${waiting} answer${waiting > 1 ? "s are" : " is"} not saved yet.`;
  }

  draw() {
    const done = this.items.filter((item) => this.#isDone(item)).length;
    const place = Math.min(this.index + 1, this.items.length);
    $("count").textContent = `Case ${place} of ${this.items.length}`;
    $("done").max = this.items.length;
    $("done").value = done;
    if (this.index >= this.items.length) return;
    const { title, questions } = this.protocol;
    $("protocol").textContent = title;
    drawQuestions($("questions"), questions, (id) => this.item.answers[id]?.value, this.question, {
      onOpen: (index) => {
        this.#release();
        this.question = index;
        this.draw();
      },
      onAnswer: (index, value) => this.answer(index, value),
    });
    const last = this.index + 1 === this.items.length;
    $("next").firstChild.textContent = last ? "Finish " : "Next case ";
    $("next").classList.toggle("waiting", !this.#isDone(this.item));
    $("back").disabled = this.index === 0 && this.question === 0;
    const current = questions[this.question];
    this.#say(`${$("count").textContent}, question ${this.question + 1} of ${questions.length}: ${current.text}`);
  }

  #drawViewer() {
    const { viewer } = this;
    for (const [id, value] of [["view", viewer.view], ["tool", viewer.tool]]) {
      for (const button of $(id).children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    }
    $("crosshair").setAttribute("aria-pressed", String(viewer.crosshair[viewer.view]));
    if (viewer.drawn.length === 0) return;
    $("slice").max = viewer.numSlices;
    $("slice").value = viewer.slice + 1;
    $("slice-text").textContent = `${viewer.slice + 1} of ${viewer.numSlices}`;
    const [low, high] = viewer.window;
    $("window").textContent = `W ${Math.round(high - low)}  L ${Math.round((low + high) / 2)}`;
    const preset = Object.entries(this.presets).find(([, [a, b]]) => Math.abs(a - low) + Math.abs(b - high) < 0.01);
    $("preset").value = preset?.[0] ?? "";
  }

  #drawState({ waiting, lost, refused, kept }) {
    const many = `${waiting} answer${waiting === 1 ? "" : "s"}`;
    let [state, text] = ["saved", "All answers saved"];
    if (refused !== null) [state, text] = ["refused", `${many} could not be saved: ${refused}`];
    else if (waiting > 0 && lost) [state, text] = ["lost", `Not saved yet: ${many}, no connection`];
    else if (waiting > 0) [state, text] = ["saving", "Saving…"];
    if (waiting > 0 && !kept) text += ". Keep this window open";
    if ($("state").dataset.state !== state && state !== "saving") this.#say(text);
    $("state").dataset.state = state;
    $("state-text").textContent = text;
    if (this.index >= this.items.length) this.sheet.setText(this.#ending());
  }

  #say(text) {
    $("live").textContent = text;
  }

  #message(text) {
    $("message").textContent = text;
    $("message").hidden = text === "";
  }

  #tick() {
    if (this.clock.running) {
      this.#readClock();
      this.#keepTime();
    }
    $("time").textContent = minutes(this.item?.active ?? 0);
  }

  #keepTime() {
    try {
      const { id, active, idle } = this.item;
      localStorage.setItem(`anatogen-time:${this.name}`, JSON.stringify({ id, active, idle }));
    } catch {
      // Then a reload before the first answer forgets the seconds before it.
    }
  }

  #restoreTime() {
    try {
      const kept = JSON.parse(localStorage.getItem(`anatogen-time:${this.name}`));
      const item = this.items.find((one) => one.id === kept?.id);
      if (item && kept.active > item.active) Object.assign(item, { active: kept.active, idle: kept.idle });
    } catch {
      // As above.
    }
  }

  #listen() {
    const { viewer } = this;
    const onButtons = (id, told) => {
      for (const button of $(id).children) button.addEventListener("click", () => told(button.dataset.value));
    };
    const drawn = (act) => () => viewer.drawn.length > 0 && act();
    onButtons("view", (value) => drawn(() => viewer.setView(value))());
    onButtons("tool", (value) => viewer.setTool(value));
    $("preset").addEventListener("change", drawn(() => {
      viewer.setWindow(this.presets[$("preset").value]);
      $("preset").blur();
    }));
    $("zoom-in").addEventListener("click", drawn(() => viewer.zoom(1.25)));
    $("zoom-out").addEventListener("click", drawn(() => viewer.zoom(1 / 1.25)));
    $("crosshair").addEventListener("click", drawn(() => viewer.toggleCrosshair()));
    $("reset").addEventListener("click", drawn(() => viewer.reset(this.study.window)));
    $("slice").addEventListener("input", drawn(() => viewer.setSlice(Number($("slice").value) - 1)));
    $("next").addEventListener("click", () => this.next());
    $("back").addEventListener("click", () => this.back());
    $("pause-button").addEventListener("click", () => this.pause());
    $("keys-button").addEventListener("click", () => this.help());
    // A button that was clicked must not take the Enter that is meant to go on.
    window.addEventListener("pointerup", () => setTimeout(() => {
      if (document.activeElement?.matches("button, input[type=range]")) document.activeElement.blur();
    }));
    window.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("pagehide", () => {
      this.#release();
      if (this.clock.running) {
        this.#readClock();
        this.#keepTime();
      }
    });
  }

  #key(event) {
    if (this.sheet.isOpen || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const onControl = target.matches?.("button, select, input");
    if (onControl && ["Enter", " "].includes(event.key)) return;
    if (target.matches?.("select") || (target.matches?.("input") && /^(Arrow|Page|Home|End)/.test(event.key))) return;
    const act = this.#actions(event)[event.key] ?? this.#typing(event.key);
    if (act === undefined) return;
    event.preventDefault();
    act();
  }

  #actions(event) {
    const { viewer } = this;
    const drawn = viewer.drawn.length > 0;
    const always = {
      Enter: () => !event.repeat && this.next(),
      Backspace: () => !event.repeat && this.back(),
      p: () => this.pause(),
      h: () => this.help(),
      "?": () => this.help(),
    };
    if (!drawn) return always;
    const names = Object.keys(this.presets);
    const cycle = (list, value) => list[(list.indexOf(value) + 1) % list.length];
    const score = this.index < this.items.length && this.protocol.questions[this.question].kind === "score";
    const step = event.shiftKey ? 10 : 1;
    const aside = (by) => (score ? this.#stepScore(by) : viewer.scroll(Math.sign(by)));
    return {
      ...always,
      ArrowUp: () => viewer.scroll(-1),
      ArrowDown: () => viewer.scroll(1),
      ArrowLeft: () => aside(-step),
      ArrowRight: () => aside(step),
      PageUp: () => viewer.scroll(-5),
      PageDown: () => viewer.scroll(5),
      Home: () => viewer.setSlice(0),
      End: () => viewer.setSlice(viewer.numSlices - 1),
      v: () => viewer.setView(cycle(["stack", "planes"], viewer.view)),
      t: () => viewer.setTool(cycle(["navigate", "window", "pan"], viewer.tool)),
      w: () => viewer.setWindow(this.presets[cycle(names, $("preset").value)]),
      c: () => viewer.toggleCrosshair(),
      r: () => viewer.reset(this.study.window),
      "+": () => viewer.zoom(1.25),
      "=": () => viewer.zoom(1.25),
      "-": () => viewer.zoom(1 / 1.25),
    };
  }

  #typing(key) {
    if (!this.ready || !/^[0-9]$/.test(key)) return undefined;
    const question = this.protocol.questions[this.question];
    if (question.kind === "score") {
      return () => this.answer(this.question, this.typed.add(key), { typing: true });
    }
    const value = valueOfKey(question, key);
    return value === undefined ? undefined : () => this.answer(this.question, value);
  }

  #stepScore(by) {
    const given = this.item.answers[this.protocol.questions[this.question].id]?.value;
    const value = Math.min(100, Math.max(0, (given ?? 50) + by));
    this.answer(this.question, value, { typing: true });
  }
}

async function begin() {
  for (;;) {
    try {
      const study = await (await call("/api/study")).json();
      return new Reading(study).start();
    } catch (error) {
      const refused = error instanceof Refused && !error.passes;
      $("message").textContent = refused ? error.message : "No connection to the study. Trying again…";
      $("message").hidden = false;
      if (refused) return;
      await wait(2);
    }
  }
}

begin();
