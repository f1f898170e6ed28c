// Streams: the events of one, and its aggregate's state at any revision, replayed by the node.

import { useEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import { ask, path } from "./client.js";
import { count, dataOf, Empty, html, Json, link, Loading, Table, Time, Trouble } from "./parts.js";

/** Events of the log that are looked through for streams that were active lately. */
const LATELY = 500;
/** Events of a stream that are listed at once. */
const LISTED = 100;
/** How often a stream is looked at for new events, in milliseconds. */
const INTERVAL = 3000;

export function Streams({ app, entry, rest }) {
  const [stream, revision] = rest;
  return html`
    <${Chooser} key=${stream ?? ""} app=${app} entry=${entry} stream=${stream} />
    ${stream ? html`<${Stream} key=${stream} app=${app} stream=${stream} wanted=${revision} />` : html`<${Lately} app=${app} entry=${entry} />`}`;
}

function Chooser({ app, entry, stream }) {
  const [text, set] = useState(stream ?? "");
  const submit = (event) => {
    event.preventDefault();
    if (text.trim()) location.hash = link("apps", app, "streams", text.trim());
  };
  const example = `${entry.aggregates[0] ?? "account"}-42`;
  return html`<form class="tools" onSubmit=${submit}>
    <label>Stream <input type="text" value=${text} onInput=${(event) => set(event.target.value)} placeholder=${example} spellcheck=${false} autocapitalize="off" /></label>
    <button type="submit">Show</button>
    ${stream && html`<a href=${link("apps", app, "streams")}>Streams that were active lately</a>`}
  </form>`;
}

/** Streams by their latest event, out of the end of the log. */
function Lately({ app, entry }) {
  const [answer, set] = useState({});
  useEffect(() => {
    const stop = new AbortController();
    ask(path(["apps", app, "events"], { after: Math.max(0, entry.position - LATELY), limit: LATELY }), { signal: stop.signal })
      .then(({ data }) => {
        const latest = new Map();
        for (const event of data.events.reverse()) if (!latest.has(event.subject)) latest.set(event.subject, event);
        set({ rows: [...latest.values()] });
      })
      .catch((problem) => stop.signal.aborted || set({ problem }));
    return () => stop.abort();
  }, [app, Math.floor(entry.position / 50)]);
  if (answer.problem) return html`<${Trouble} problem=${answer.problem} />`;
  if (!answer.rows) return html`<${Loading} />`;
  if (answer.rows.length === 0) {
    return html`<${Empty}><p><strong>There are no streams yet.</strong> A stream begins with the first event of its aggregate; its name is the aggregate's with the id behind it, as in <code>${entry.aggregates[0] ?? "account"}-42</code>.</p><//>`;
  }
  const columns = [
    { name: "Stream", class: "names", of: (event) => html`<a href=${link("apps", app, "streams", event.subject)}>${event.subject}</a>` },
    { name: "Revision", number: true, of: (event) => count(event.sequence) },
    { name: "Latest event", of: (event) => event.type },
    { name: "When", of: (event) => html`<${Time} at=${event.time} />` },
  ];
  return html`<${Table} caption="Streams that were active lately" rows=${answer.rows} columns=${columns} id=${(event) => event.subject} />`;
}

/** Asks for states, each once. */
function usePastState(app, stream, revision) {
  const known = useRef(new Map());
  const [shown, set] = useState({});
  useEffect(() => {
    if (revision === undefined) return undefined;
    const stop = new AbortController();
    const state = async (at) => {
      if (!known.current.has(at)) {
        const { data } = await ask(path(["apps", app, "streams", stream, "state"], { revision: at }), { signal: stop.signal });
        known.current.set(at, data);
      }
      return known.current.get(at);
    };
    // Whoever drags the slider passes many revisions.
    const timer = setTimeout(async () => {
      try {
        const now = await state(revision);
        const before = revision > 0 ? await state(revision - 1) : undefined;
        set({ revision, now, before });
      } catch (problem) {
        if (!stop.signal.aborted) set({ revision, problem });
      }
    }, known.current.has(revision) ? 0 : 120);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [app, stream, revision]);
  return shown;
}

/** Where a stream ends: as far as its latest state goes, or as the refusal to fold it says. */
async function lastRevision(app, stream, signal) {
  try {
    return (await ask(path(["apps", app, "streams", stream, "state"]), { signal })).data.revision;
  } catch (problem) {
    return problem.document?.last_revision ?? 0;
  }
}

/** The stream's events around a revision, and those that come. */
function useEvents(app, stream, around) {
  const [answer, set] = useState({});
  useEffect(() => {
    if (around === undefined) return undefined;
    const stop = new AbortController();
    const page = async (from) => (await ask(path(["apps", app, "streams", stream], { from, limit: LISTED }), { signal: stop.signal })).data;
    let timer;
    (async () => {
      try {
        let first = Math.max(0, around - LISTED / 2), { events, next } = await page(first);
        set({ events, next, first });
        const more = async () => {
          try {
            const last = events.at(-1)?.sequence;
            // Only at its end does a list grow by itself.
            if (next === null && !document.hidden) {
              const behind = await page(last === undefined ? 0 : last + 1);
              if (behind.events.length) {
                events = [...events, ...behind.events].slice(-2 * LISTED);
                next = behind.next;
                set({ events, next, first: events[0].sequence });
              }
            }
          } catch {
            // The header says that the node is away; the next try may find it.
          }
          if (!stop.signal.aborted) timer = setTimeout(more, INTERVAL);
        };
        timer = setTimeout(more, INTERVAL);
      } catch (problem) {
        if (!stop.signal.aborted) set({ problem });
      }
    })();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [app, stream, around]);
  return answer;
}

function Stream({ app, stream, wanted }) {
  const asked = wanted !== undefined && /^\d+$/.test(wanted) ? Number(wanted) : undefined;
  // Which part is listed: around what was asked for first, or the end; moves only when a link leads out of it.
  const [around, setAround] = useState(asked);
  useEffect(() => {
    if (asked !== undefined) return undefined;
    const stop = new AbortController();
    lastRevision(app, stream, stop.signal).then((last) => stop.signal.aborted || setAround(last));
    return () => stop.abort();
  }, [app, stream, asked === undefined]);
  const { events, next, first, problem } = useEvents(app, stream, around);
  const head = next === null ? events?.at(-1)?.sequence : undefined;
  const last = events?.at(-1)?.sequence;
  const revision = asked ?? last;
  useEffect(() => {
    if (asked !== undefined && events?.length && (asked < first || asked > last + 1)) setAround(asked);
  }, [asked]);
  const shown = usePastState(app, stream, events?.length ? revision : undefined);
  const event = useMemo(() => events?.find((one) => one.sequence === revision), [events, revision]);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  if (!events) return html`<${Loading} />`;
  if (events.length === 0 && !around) {
    return html`<${Empty}><p><strong>Stream <code>${stream}</code> has no events.</strong> A stream's name is its aggregate's with the id behind it; capital letters count.</p><//>`;
  }
  const go = (to) => (location.hash = link("apps", app, "streams", stream, String(to)));
  const end = Math.max(last ?? 0, revision ?? 0);
  return html`<div class="stream">
    <section aria-labelledby="history" class="history">
      <h2 id="history">Events of <span class="mono">${stream}</span></h2>
      ${first > 0 && html`<p><a href=${link("apps", app, "streams", stream, String(Math.max(0, first - 1)))}>Earlier events</a></p>`}
      <ol class="steps" start=${first}>${events.map((one) => html`<li key=${one.sequence}>
        <a href=${link("apps", app, "streams", stream, String(one.sequence))} aria-current=${one.sequence === revision ? "step" : undefined}>
          <span class="position">${count(one.sequence)}</span><span class="type">${one.type}</span><span class="when"><${Time} at=${one.time} /></span>
        </a></li>`)}</ol>
      ${next !== null && html`<p class="tools"><a href=${link("apps", app, "streams", stream, String(next + LISTED / 2))}>Later events</a> <a href=${link("apps", app, "streams", stream)}>The latest</a></p>`}
    </section>
    <section aria-labelledby="past" class="past">
      <h2 id="past">State at revision ${count(revision)}${revision === head ? " (the latest)" : ""}</h2>
      <div class="tools steer">
        <button type="button" disabled=${!(revision > 0)} onClick=${() => go(revision - 1)}>Earlier</button>
        ${end > first && html`<input type="range" aria-label="Revision" min=${first} max=${end} value=${revision} onInput=${(input) => go(input.target.value)} />`}
        <button type="button" disabled=${!(revision < end)} onClick=${() => go(revision + 1)}>Later</button>
      </div>
      <div aria-live="polite" aria-busy=${shown.revision !== revision}>
        <${Trouble} problem=${shown.problem} />
        ${!shown.problem && shown.now && html`<${PastState} shown=${shown} />`}
        ${!shown.problem && !shown.now && html`<${Loading} />`}
      </div>
      ${event && html`<h3>${event.type}</h3>
        <dl class="facts">
          <dt>Position</dt><dd>${count(event.position)}</dd>
          <dt>Recorded</dt><dd><${Time} at=${event.time} /></dd>
          <dt>By</dt><dd>${event.actor}</dd>
          <dt>Command</dt><dd class="mono">${event.commandid}</dd>
          <dt>Module</dt><dd class="mono">${event.module?.slice(0, 12)}</dd>
        </dl>
        <${Json} value=${dataOf(event)} label=${`Data of event ${event.sequence}`} />`}
    </section>
  </div>`;
}

function PastState({ shown: { now, before, revision } }) {
  if ("state_base64" in now) {
    return html`<p>The module's snapshot is not JSON. Its bytes, in Base64:</p><pre class="json" tabindex="0">${now.state_base64}</pre>`;
  }
  return html`
    <${Json} value=${now.state} before=${before ? before.state : undefined} label=${`State at revision ${revision}`} />
    <p class="faint">${revision > 0 ? "+ and − mark what this event has changed. " : ""}Folded from the stream's events by the module that serves now.</p>`;
}
