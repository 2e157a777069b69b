// Calls to the study's server. The token of the page's link goes with each, in a header.

const token = decodeURIComponent(location.pathname.split("/")[2] ?? "");

const MOST_MILLISECONDS = 15_000;

/** An answer of the server that is not the one asked for. */
export class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }

  /** Whether the same request may succeed later. */
  get passes() {
    return this.status >= 500 || [408, 425, 429].includes(this.status);
  }
}

/**
 * The response to a request.
 * @throws {Refused} If the server refuses; TypeError or DOMException if it is not reached.
 */
export async function call(path, { json, signal = AbortSignal.timeout(MOST_MILLISECONDS) } = {}) {
  const response = await fetch(path, {
    method: json === undefined ? "GET" : "POST",
    headers: {
      Authorization: `Bearer ${token}`,
      ...(json === undefined ? {} : { "Content-Type": "application/json" }),
    },
    body: json === undefined ? undefined : JSON.stringify(json),
    cache: "no-store",
    credentials: "omit",
    // A small post goes out even while the page is being closed.
    keepalive: json !== undefined,
    signal,
  });
  if (response.ok) return response;
  const reason = await response.json().then((found) => String(found.detail), () => response.statusText);
  throw new Refused(response.status, reason);
}

export function wait(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}
