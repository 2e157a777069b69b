// Answers on their way to the server. Each is kept by the browser from the key press until the server has it on
// its disk, and sent as often as that takes; its id lets the server store it once.

import { call, Refused, wait } from "./api.js";

const MOST_SECONDS = 10;
// A choice that reaches the server later than this is one of several that were made apart, not the latest.
const RECENT_MILLISECONDS = 60_000;

export class Outbox {
  /**
   * @param {string} name Of this study and reader, under which the browser keeps answers.
   * @param {(state: {waiting: number, lost: boolean, refused: string | null, kept: boolean}) => void} onChange
   * @param {(answer: object) => void} onRaise Hears of a choice whose revision had to be raised.
   */
  constructor(name, onChange, onRaise) {
    this.prefix = `anatogen-answer:${name}:`;
    this.onChange = onChange;
    this.onRaise = onRaise;
    this.waiting = new Map();
    this.refused = null;
    this.lost = false;
    // False where the browser keeps nothing, as in some private windows.
    this.kept = true;
    this.wake = () => {};
    for (const answer of this.#stored()) this.waiting.set(answer.client_id, answer);
    window.addEventListener("online", () => this.wake());
    window.addEventListener("beforeunload", (event) => {
      if (this.waiting.size > 0 && !this.kept) event.preventDefault();
    });
    this.#run();
  }

  #stored() {
    const found = [];
    try {
      for (const key of Object.keys(localStorage).filter((key) => key.startsWith(this.prefix))) {
        found.push(JSON.parse(localStorage.getItem(key)));
      }
    } catch {
      this.kept = false;
    }
    // Of one revision the one that has taken longer is the later.
    return found.sort((a, b) => a.revision - b.revision || a.seconds_active - b.seconds_active);
  }

  /** The answers that the server does not have yet. */
  answers() {
    return [...this.waiting.values()];
  }

  /**
   * @param {object} answer Without an id.
   * @param {boolean} chosen Whether the reader has just chosen it, so that it is to count whatever another device
   *   sent before.
   */
  add(answer, chosen) {
    const whole = { ...answer, client_id: newId(), chosen_at: chosen ? Date.now() : null };
    this.waiting.set(whole.client_id, whole);
    try {
      localStorage.setItem(this.prefix + whole.client_id, JSON.stringify(whole));
    } catch {
      this.kept = false;
    }
    this.wake();
    this.#tell();
  }

  #remove(answer) {
    this.waiting.delete(answer.client_id);
    try {
      localStorage.removeItem(this.prefix + answer.client_id);
    } catch {
      this.kept = false;
    }
  }

  #raise(answer, above) {
    const times = this.answers().filter((other) => isOfSame(other, answer));
    const raised = {
      ...answer,
      revision: above + 1,
      seconds_active: Math.max(...times.map((other) => other.seconds_active)),
      seconds_idle: Math.max(...times.map((other) => other.seconds_idle)),
    };
    this.add(raised, true);
    this.onRaise(raised);
  }

  /** Whether a later choice for the same question waits. */
  #isReplaced(answer) {
    return this.answers().some(
      (other) => isRecent(other) && isOfSame(other, answer) && other.revision > answer.revision,
    );
  }

  #tell() {
    this.onChange({
      waiting: this.waiting.size, lost: this.lost, refused: this.refused, kept: this.kept,
    });
  }

  async #run() {
    const refused = new Set();
    let pause = 0.5;
    for (;;) {
      const next = this.answers().find((answer) => !refused.has(answer.client_id));
      if (next === undefined) {
        this.#tell();
        await this.#sleep(null);
        continue;
      }
      try {
        const { chosen_at, ...sent } = next;
        const stored = await (await call("/api/answers", { json: sent })).json();
        // A proxy between may answer 200 with a page of its own.
        if (stored.client_id !== next.client_id) throw new TypeError("this is no answer of the study");
        // Another device has changed it since this page was opened. The raised one is kept before this one goes.
        if (stored.overruled_by !== null && isRecent(next) && !this.#isReplaced(next)) {
          this.#raise(sent, stored.overruled_by);
        }
        this.#remove(next);
        this.lost = false;
        pause = 0.5;
      } catch (error) {
        if (error instanceof Refused && !error.passes) {
          // It stays in the browser, and is tried again when the page is opened again.
          refused.add(next.client_id);
          this.refused = error.message;
        } else {
          this.lost = true;
          this.#tell();
          await this.#sleep(pause);
          pause = Math.min(2 * pause, MOST_SECONDS);
        }
      }
      this.#tell();
    }
  }

  #sleep(seconds) {
    const woken = new Promise((resolve) => {
      this.wake = resolve;
    });
    return seconds === null ? woken : Promise.race([woken, wait(seconds)]);
  }
}

function isOfSame(answer, other) {
  return answer.item_id === other.item_id && answer.question === other.question;
}

function isRecent(answer) {
  // Answers that only tell time, and those kept by older pages, were chosen at no time.
  return answer.chosen_at != null && Date.now() - answer.chosen_at < RECENT_MILLISECONDS;
}

/** A random UUID; `crypto.randomUUID` exists on encrypted pages only, and studies are read in local networks too. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
