// Volumes from the server: the ones shown, and the next ones before they are needed.

import { call, Refused, wait } from "./api.js";

// Of items, kept in memory: this one and its neighbours.
const MOST_ITEMS = 3;
const MOST_SILENT_MILLISECONDS = 30_000;

export class Volumes {
  /** @param {(lost: boolean) => void} onLost Told when the server is not reached, and when it is again. */
  constructor(onLost) {
    this.onLost = onLost;
    this.found = new Map();
  }

  /** The files of an item's volumes, as ArrayBuffers. */
  of(item, sides) {
    const earlier = this.found.get(item);
    const files = earlier ?? Promise.all(sides.map((side) => this.#fetch(`/api/items/${item}/${side}`)));
    this.found.delete(item);
    this.found.set(item, files);
    if (earlier === undefined) files.catch(() => this.found.delete(item));
    for (const old of [...this.found.keys()].slice(0, -MOST_ITEMS)) this.found.delete(old);
    return files;
  }

  async #fetch(path) {
    for (let pause = 0.5; ; pause = Math.min(2 * pause, 8)) {
      try {
        const file = await download(path);
        this.onLost(false);
        return file;
      } catch (error) {
        if (error instanceof Refused && !error.passes) throw error;
        this.onLost(true);
        await wait(pause);
      }
    }
  }
}

/** A file, however long it takes; given up where nothing comes, as from a connection that died in a sleep. */
async function download(path) {
  const stop = new AbortController();
  let timer;
  const expect = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), MOST_SILENT_MILLISECONDS);
  };
  expect();
  try {
    const { body } = await call(path, { signal: stop.signal });
    const reader = body.getReader();
    const parts = [];
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      expect();
    }
    return await new Blob(parts).arrayBuffer();
  } finally {
    clearTimeout(timer);
  }
}
