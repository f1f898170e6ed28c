// Talks to the node that this page comes from: single requests, polling, and the live stream of events.
//
// The token is kept for the tab (sessionStorage) and sent as a header with every request: never in a URL, and never by the
// browser on its own, so that no other page can use it.

const TOKEN = "ebbtide-token";
/** The longest pause between two tries while the node does not answer. */
const LONGEST_PAUSE = 15_000;
/** A live stream has a heartbeat every 15 s; one that is silent for so long is dead. */
const SILENCE = 40_000;
/** A node that is there answers what is asked again and again within this. */
const ANSWER = 10_000;

/** A value that components follow. */
export function store(value) {
  const followers = new Set();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const follower of followers) follower(value);
    },
    follow(follower) {
      followers.add(follower);
      return () => followers.delete(follower);
    },
  };
}

/** Whether the node answers. */
export const reachable = store(true);
/** Whether a token is needed, and whether the last one was turned away: `null`, `"missing"` or `"refused"`. */
export const wanted = store(null);

/** An error that the node told (a problem document), or that there was no answer. */
export class Problem extends Error {
  constructor(document) {
    super(document.detail || document.title);
    Object.assign(this, { code: document.code, title: document.title, hint: document.hint, document });
  }
}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

export function setToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
  wanted.set(null);
}

async function open(path, { method = "GET", body, headers = {}, signal, within } = {}) {
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers = { ...headers, authorization: `Bearer ${token}` };
  if (body !== undefined) headers = { ...headers, "content-type": "application/json" };
  let response;
  // A connection made while the node comes up may never be answered.
  const late = new AbortController();
  const timer = within && setTimeout(() => late.abort(), within);
  try {
    response = await fetch(path, {
      method, headers, signal: signal ? AbortSignal.any([signal, late.signal]) : late.signal, cache: "no-store", credentials: "omit", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    reachable.set(false);
    throw new Problem({
      code: "unreachable",
      title: "The node does not answer",
      detail: "The node does not answer. This page goes on by itself when it does.",
    });
  } finally {
    clearTimeout(timer);
  }
  reachable.set(true);
  if (response.ok || response.status === 304) return response;
  let document;
  try {
    document = await response.json();
  } catch {
    document = { title: `The node answered ${response.status}`, code: "unknown" };
  }
  if (response.status === 401) wanted.set(token ? "refused" : "missing");
  throw new Problem(document);
}

/** One request for JSON. */
export async function ask(path, options) {
  const response = await open(path, options);
  return { data: await response.json(), headers: response.headers };
}

const pause = (failures) => Math.min(LONGEST_PAUSE, 500 * 2 ** failures) * (0.75 + Math.random() / 2);

/** Waits; resolves early when the page is looked at again, and when the node answers again. */
function wait(millis, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      unfollow();
      document.removeEventListener("visibilitychange", seen);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const seen = () => document.hidden || done();
    const unfollow = reachable.follow((answers) => answers && done());
    const timer = setTimeout(done, millis);
    document.addEventListener("visibilitychange", seen);
    signal.addEventListener("abort", done);
  });
}

/** Asks again and again, while the page is looked at; what has not changed is not sent again. `take` gets `data` if it is
 * new, and when it was asked for, or a `problem`. Returns how to stop. */
export function poll(path, interval, take) {
  const controller = new AbortController();
  const { signal } = controller;
  (async () => {
    let etag, failures = 0;
    while (!signal.aborted) {
      if (!document.hidden) {
        try {
          const response = await open(path, { signal, within: ANSWER, headers: etag ? { "if-none-match": etag } : {} });
          const known = response.status === 304;
          take({ ...(known ? {} : { data: await response.json() }), at: performance.now() });
          if (!known) etag = response.headers.get("etag");
          failures = 0;
        } catch (problem) {
          if (signal.aborted) return;
          failures += 1;
          take({ problem });
        }
      }
      await wait(failures ? pause(failures) : interval, signal);
    }
  })();
  return () => controller.abort();
}

/** Asks for JSON until there is an answer; `tell` hears of each problem. Rejects when `signal` is aborted. */
export async function insist(path, signal, tell) {
  for (let failures = 1; ; failures += 1) {
    try {
      return await ask(path, { signal, within: ANSWER });
    } catch (problem) {
      signal.throwIfAborted();
      tell(problem);
      await wait(pause(failures), signal);
      signal.throwIfAborted();
    }
  }
}

/** Follows server-sent events: `take(events)` gets what came at once; connections that end are made again, and go on
 * behind the last event. `tell` hears whether it is connected. Returns how to stop. */
export function follow(path, after, take, tell) {
  const stopping = new AbortController();
  (async () => {
    let last = String(after), failures = 0;
    while (!stopping.signal.aborted) {
      const connection = new AbortController();
      const stop = () => connection.abort();
      stopping.signal.addEventListener("abort", stop);
      let watchdog;
      const alive = () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(stop, SILENCE);
      };
      try {
        alive();
        const headers = { accept: "text/event-stream", "last-event-id": last };
        const response = await open(path, { headers, signal: connection.signal, within: ANSWER });
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        tell({ live: true });
        let text = "";
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          alive();
          failures = 0;
          const frames = (text + value).split("\n\n");
          text = frames.pop();
          const events = [];
          for (const frame of frames) {
            for (const line of frame.split("\n")) {
              if (line.startsWith("id: ")) last = line.slice(4);
              else if (line.startsWith("data: ")) events.push(JSON.parse(line.slice(6)));
            }
          }
          if (events.length) take(events);
        }
        tell({ live: false });
      } catch (problem) {
        if (!stopping.signal.aborted) {
          // The data folder is another one than before: from its start.
          if (problem.code === "position_unknown") last = "0";
          tell({ live: false, problem: problem instanceof Problem ? problem : undefined });
        }
      } finally {
        clearTimeout(watchdog);
        stopping.signal.removeEventListener("abort", stop);
      }
      failures += 1;
      await wait(pause(failures), stopping.signal);
    }
  })();
  return () => stopping.abort();
}

/** A path of the control plane: each segment encoded, parameters that are there. */
export function path(segments, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null && value !== "") query.append(name, value);
  }
  const text = "/" + segments.map(encodeURIComponent).join("/");
  return query.size ? `${text}?${query}` : text;
}
