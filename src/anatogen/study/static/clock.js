// Time spent at a case, and time away from it while it was open.

// Without input for longer, the reader counts as away.
export const IDLE_AFTER = 30_000;

/** Parts of the time from `from` to `to`, in milliseconds, of which the last input came at `input`. */
export function split(from, to, input, hidden) {
  const whole = Math.max(0, to - from);
  const active = hidden ? 0 : Math.min(whole, Math.max(0, input + IDLE_AFTER - from));
  return { active, idle: whole - active };
}

export class Clock {
  constructor() {
    this.running = false;
    this.active = 0;
    this.idle = 0;
    // A closed laptop stops all timers: what it slept through is seen, and idle, at the first tick after it.
    this.at = this.input = Date.now();
    this.hidden = document.hidden;
    document.addEventListener("visibilitychange", () => {
      this.tick();
      this.hidden = document.hidden;
      this.input = Date.now();
    });
    for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"]) {
      window.addEventListener(kind, () => this.noteInput(), { passive: true, capture: true });
    }
  }

  noteInput() {
    this.tick();
    this.input = Date.now();
  }

  /** Counts on from what an earlier visit spent, in seconds. */
  start(active, idle) {
    this.active = 1000 * active;
    this.idle = 1000 * idle;
    this.at = this.input = Date.now();
    this.running = true;
  }

  stop() {
    this.tick();
    this.running = false;
  }

  tick() {
    const now = Date.now();
    if (this.running) {
      const spent = split(this.at, now, this.input, this.hidden);
      this.active += spent.active;
      this.idle += spent.idle;
    }
    this.at = now;
    // A clock that was set back must not make the last input one of the future.
    this.input = Math.min(this.input, now);
  }

  /** Seconds, to a tenth. */
  read() {
    this.tick();
    return { active: Math.round(this.active / 100) / 10, idle: Math.round(this.idle / 100) / 10 };
  }
}
