// The reader's page: goes through the cases, keeps every answer, shows what is going on.

import { call, Refused, wait } from "./api.js";
import { Clock } from "./clock.js";
import { actionOf } from "./keys.js";
import { Outbox } from "./outbox.js";
import { drawQuestions, Typed } from "./questions.js";
import { Sheet } from "./sheet.js";
import { drawToolbar, listenToToolbar, presetOf, presetsOf } from "./toolbar.js";
import { Viewer } from "./viewer.js";
import { Volumes } from "./volumes.js";

const $ = (id) => document.getElementById(id);
const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
// The store's limit, about a hundred days.
const MOST_IDLE = 9e6;

export class Reading {
  constructor(study) {
    this.study = study;
    this.protocols = Object.fromEntries(study.protocols.map((protocol) => [protocol.id, protocol]));
    this.items = study.items.map((item) => ({ ...item, active: 0, idle: 0, sent: 0 }));
    this.presets = presetsOf(study.modality, study.window);
    this.name = `${study.study}:${study.reader}`;
    this.index = 0;
    this.question = 0;
    this.turn = 0;
    this.introduced = new Set();
    this.held = null;
    this.ready = false;
    this.aside = false;
    this.typed = new Typed();
    this.clock = new Clock();
    this.volumes = new Volumes((lost) => {
      // What is fetched ahead must not cover what is read.
      if (!this.ready) this.#message(lost ? "No connection to the study. Trying again…" : "Loading…");
    });
    const numPanes = study.protocols.some((protocol) => protocol.kind === "pair") ? 2 : 1;
    const panes = [...document.querySelectorAll(".pane")].slice(0, numPanes);
    this.viewer = new Viewer(panes, () => drawToolbar(this.viewer, this.presets));
    this.sheet = new Sheet();
  }

  async start() {
    $("title").textContent = document.title = this.study.title;
    this.outbox = new Outbox(this.name, (state) => this.#drawState(state), (answer) => this.#noteRaised(answer));
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
    if (this.study.paused) await this.pause();
    const first = this.items.findIndex((item) => !this.#isDone(item));
    this.open(first < 0 ? this.items.length : first);
  }

  get item() {
    return this.items[this.index];
  }

  get protocol() {
    return this.protocols[this.item.protocol];
  }

  /** The question that is open. */
  get current() {
    return this.protocol.questions[this.question];
  }

  get preset() {
    return presetOf(this.viewer, this.presets);
  }

  #isDone(item) {
    return this.protocols[item.protocol].questions.every((question) => question.id in item.answers);
  }

  /** Takes an answer into what the page shows, if it is the latest. */
  #note(answer) {
    const answers = this.items.find((item) => item.id === answer.item_id)?.answers;
    if (answers && !(answers[answer.question]?.revision > answer.revision)) answers[answer.question] = answer;
  }

  /** Takes in that a choice of this page goes above another device's. */
  #noteRaised(answer) {
    if (this.held?.item_id === answer.item_id && this.held.question === answer.question) {
      this.held.revision = answer.revision + 1;
      return;
    }
    this.#note(answer);
    if (this.item?.id === answer.item_id) this.draw();
  }

  /** Goes to a case; after the last one that is the end. */
  async open(index, question = null) {
    if (this.aside) return;
    const turn = ++this.turn;
    this.#setReady(false);
    this.index = index;
    this.viewer.clear();
    if (index >= this.items.length) return this.#finish();
    this.question = question ?? this.#unanswered() ?? 0;
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
    this.#setReady(true);
    if (!this.sheet.isOpen) this.clock.start(this.item.active, this.item.idle);
    if (index + 1 < this.items.length) this.#files(index + 1).catch(() => {});
  }

  #setReady(ready) {
    this.ready = ready;
    $("panes").setAttribute("aria-busy", String(!ready));
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

  /** Takes a choice, and goes on to the next question without an answer. */
  answer(index, value) {
    if (!this.ready) return;
    this.#take(index, value);
    this.#release();
    this.question = this.#unanswered() ?? index;
    this.typed.clear();
    this.draw();
  }

  /** Takes another digit of a score. */
  typeScore(digit) {
    this.#typing(this.typed.add(digit));
  }

  stepScore(by) {
    const value = (this.item.answers[this.current.id]?.value ?? 50) + by;
    this.#typing(Math.min(100, Math.max(0, value)));
  }

  /** Takes a score that may change with the next key; it is sent when none comes. */
  #typing(value) {
    if (!this.ready) return;
    this.#take(this.question, value);
    this.releasing = setTimeout(() => this.#release(), 800);
    this.draw();
  }

  /** The first question of this case without an answer. */
  #unanswered() {
    const index = this.protocol.questions.findIndex((one) => !(one.id in this.item.answers));
    return index < 0 ? undefined : index;
  }

  #take(index, value) {
    const { id } = this.protocol.questions[index];
    clearTimeout(this.releasing);
    if (this.held !== null && this.held.question !== id) this.#release();
    const revision = this.held?.revision ?? (this.item.answers[id]?.revision ?? -1) + 1;
    this.held = { item_id: this.item.id, question: id, value, revision };
    this.#note(this.held);
  }

  /** Hands what was taken over to be saved. */
  #release() {
    clearTimeout(this.releasing);
    if (this.held === null) return;
    this.#readClock();
    this.#send(this.held, true);
    this.held = null;
  }

  #send(answer, chosen) {
    const { active, idle } = this.item;
    this.outbox.add({ ...answer, seconds_active: active, seconds_idle: idle }, chosen);
    this.item.sent = active;
  }

  #readClock() {
    if (!this.clock.running) return;
    const { active, idle } = this.clock.read();
    Object.assign(this.item, { active, idle: Math.min(idle, MOST_IDLE) });
  }

  /** Stops the case's time. What was spent since its last answer is sent with that answer once more. */
  #leave() {
    this.#release();
    this.#readClock();
    this.clock.stop();
    const index = this.protocol.questions.findLastIndex((one) => one.id in this.item.answers);
    if (index >= 0 && this.item.active - this.item.sent >= 1) {
      const { id } = this.protocol.questions[index];
      const { value, revision } = this.item.answers[id];
      // Of the same revision: time must not undo what was changed elsewhere meanwhile.
      this.#send({ item_id: this.item.id, question: id, value, revision }, false);
    }
  }

  next() {
    if (!this.ready) return;
    this.#release();
    const open = this.#unanswered();
    if (open !== undefined) {
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
    if (this.ready) this.#leave();
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

  /** The link is open in another window: this one hands over what it holds, and takes no more answers. */
  async stepAside() {
    if (this.ready) this.#leave();
    this.aside = true;
    this.turn += 1;
    this.#setReady(false);
    await this.sheet.show({
      eyebrow: "One at a time", title: "Your study is open in another window", button: "Read here", curtain: true,
      text: "Your answers are kept. You can close this window, or go on in it.",
    });
    location.reload();
  }

  async #finish() {
    this.draw();
    this.#message("");
    await this.sheet.show({
      eyebrow: "Finished", title: "All cases are answered", text: this.#ending(), curtain: true,
      button: "Look at my answers again",
    });
    this.open(this.items.length - 1, 0);
  }

  #ending() {
    const waiting = this.outbox.answers().length;
    if (waiting === 0) return "Thank you. Everything is saved: you can close this window.";
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
      onScore: (value) => this.#typing(value),
    });
    const last = this.index + 1 === this.items.length;
    $("next").firstChild.textContent = last ? "Finish " : "Next case ";
    $("next").classList.toggle("waiting", !this.#isDone(this.item));
    $("back").disabled = this.index === 0 && this.question === 0;
    const current = questions[this.question];
    this.#say(`${$("count").textContent}, question ${this.question + 1} of ${questions.length}: ${current.text}`);
  }

  #drawState({ waiting, lost, refused, kept }) {
    const many = `${waiting} answer${waiting === 1 ? "" : "s"}`;
    let [state, text] = ["saved", "All answers saved"];
    if (refused !== null) [state, text] = ["refused", `${many} could not be saved: ${refused}`];
    else if (waiting > 0 && lost) [state, text] = ["lost", `Not saved yet: ${many}, no connection`];
    else if (waiting > 0) [state, text] = ["saving", "Saving…"];
    if (waiting > 0 && !kept) text += ". Keep this window open";
    if (state !== "saving") this.#say(text, "live-state");
    $("state").dataset.state = state;
    $("state-text").textContent = text;
    if (this.index >= this.items.length && !this.aside) this.sheet.setText(this.#ending());
  }

  /** Tells screen readers. */
  #say(text, where = "live") {
    if ($(where).textContent !== text) $(where).textContent = text;
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
    listenToToolbar(this.viewer, this.presets, this.study.window);
    $("next").addEventListener("click", () => this.next());
    $("back").addEventListener("click", () => this.back());
    $("pause-button").addEventListener("click", () => this.pause());
    $("keys-button").addEventListener("click", () => this.help());
    // A button that was clicked must not take the Enter that is meant to go on.
    window.addEventListener("pointerup", () => setTimeout(() => {
      if (document.activeElement?.matches("button, input[type=range]")) document.activeElement.blur();
    }));
    window.addEventListener("keydown", (event) => {
      const act = this.sheet.isOpen || this.index >= this.items.length ? undefined : actionOf(event, this);
      if (act === undefined) return;
      event.preventDefault();
      act();
    });
    // The graphics card starts anew after some sleeps and crashes, without what was drawn; answers are kept.
    window.addEventListener("webglcontextlost", () => this.aside || location.reload(), { capture: true });
    window.addEventListener("pagehide", () => {
      this.#release();
      if (this.clock.running) {
        this.#readClock();
        this.#keepTime();
      }
    });
  }
}

async function begin() {
  // Two windows of one reader would each know, and answer, what the other does not.
  const windows = new BroadcastChannel(location.pathname);
  const opened = new Promise((resolve) => {
    windows.onmessage = resolve;
  });
  // Before asking for answers, so that an older window has handed over its own.
  windows.postMessage("opened");
  for (;;) {
    try {
      const study = await (await call("/api/study")).json();
      const reading = new Reading(study);
      opened.then(() => reading.stepAside());
      return reading.start();
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
