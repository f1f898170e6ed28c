// Projections: how far each has got, and what is parked, to be retried or skipped.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask, path } from "./client.js";
import { bytes, count, Empty, html, link, Loading, State, Table, Time, Trouble, usePolled } from "./parts.js";

const KINDS = { live: "good", "catching-up": "calm", retrying: "warn", halted: "bad", superseded: "faint", stopped: "faint" };
/** Parked keys that are listed at once. */
const LISTED = 50;

const columns = (app) => [
  { name: "Projection", of: (row) => row.projection },
  { name: "State", of: (row) => html`<${State} kind=${KINDS[row.state] ?? "faint"}>${row.state}<//>` },
  { name: "Position", number: true, of: (row) => count(row.mark) },
  { name: "Lag", number: true, of: (row) => (row.lag ? html`<strong>${count(row.lag)}</strong>` : "0") },
  { name: "Parked", number: true, of: (row) => (row.parked ? html`<strong class="wrong">${count(row.parked)}</strong>` : "0") },
  { name: "Models", class: "names", of: (row) => row.models.map((model, at) => html`${at > 0 && ", "}<a key=${model} href=${link("apps", app, "models", model)}>${model}</a>`) },
  { name: "Size", number: true, of: (row) => bytes(row.size_bytes) },
  { name: "Being built", of: (row) => (row.building ? html`${row.building.state}, ${count(row.building.lag)} behind` : "–") },
];

export function Projections({ app }) {
  const { data, problem } = usePolled(path(["projections"], { app }), 1500);
  if (!data) return problem ? html`<${Trouble} problem=${problem} />` : html`<${Loading} />`;
  const { projections } = data;
  if (projections.length === 0) {
    return html`<${Empty}><p><strong>This app has no projections.</strong> One keeps a model from events: declare it in <code>ebb.toml</code> under <code>[projection.NAME]</code>, with its <code>[model.NAME]</code>, and deploy again.</p><//>`;
  }
  return html`
    <${Trouble} problem=${problem} />
    <${Table} caption="Projections" hideCaption rows=${projections} columns=${columns(app)} id=${(row) => row.projection} />
    ${projections.map((row) => html`<${Reason} key=${row.projection} row=${row} />`)}
    ${projections.map((row) => html`<${Parked} key=${row.projection} app=${app} name=${row.projection} parked=${row.parked} />`)}`;
}

function Reason({ row }) {
  const reason = row.reason ?? row.error;
  if (!reason) return null;
  return html`<div class=${`notice ${row.state === "halted" ? "bad" : "warn"}`}><p><strong>${row.projection} is ${row.state}.</strong> ${reason}</p></div>`;
}

function Parked({ app, name, parked }) {
  const base = ["apps", app, "projections", name, "parked"];
  const [answer, set] = useState({});
  const [again, setAgain] = useState(0);
  const [said, say] = useState(null);
  const heading = useRef();
  useEffect(() => {
    if (!parked) {
      set({});
      return undefined;
    }
    const stop = new AbortController();
    ask(path(base, { limit: LISTED }), { signal: stop.signal })
      .then(({ data }) => set(data))
      .catch((problem) => stop.signal.aborted || set((before) => ({ ...before, problem })));
    return () => stop.abort();
  }, [app, name, parked, again]);

  /** Retries or skips, says what became of it, and leaves the focus where it can be found. */
  const act = async (what, body) => {
    try {
      const { data } = await ask(path([...base, what]), { method: "POST", body });
      const parts = [];
      if (data.skipped) parts.push(`${count(data.skipped)} ${data.skipped === 1 ? "event" : "events"} skipped`);
      if (data.applied) parts.push(`${count(data.applied)} ${data.applied === 1 ? "event" : "events"} applied`);
      parts.push(data.remaining ? `${count(data.remaining)} still parked` : "nothing of it is parked any more");
      say({ good: !data.failed, text: `${body.key}: ${parts.join(", ")}.${data.failed ? ` It failed again: ${data.failed}` : ""}` });
    } catch (problem) {
      say({ good: false, text: `${body.key}: ${problem.message}` });
    }
    setAgain((before) => before + 1);
    heading.current?.focus();
  };

  const keys = answer.parked ?? [];
  if (!parked && !said) return null;
  return html`<section aria-labelledby=${`parked-${name}`}>
    <h2 id=${`parked-${name}`} tabindex="-1" ref=${heading}>Parked in ${name}</h2>
    <p>An event of each of these keys could not be applied. Later events of the key wait behind it; all other keys go on.</p>
    <div role="status">${said && html`<p class=${`notice ${said.good ? "good" : "bad"}`}>${said.text}</p>`}</div>
    <${Trouble} problem=${answer.problem} />
    ${keys.length > 0 && html`<${Table} caption=${`Parked keys of ${name}`} hideCaption rows=${keys} id=${(row) => row.key} columns=${[
      { name: "Key", class: "names", of: (row) => html`<a href=${link("apps", app, "streams", row.key)}>${row.key}</a>` },
      { name: "Why", class: "text", of: (row) => row.reason },
      { name: "Waiting", number: true, of: (row) => `${count(row.queued)} ${row.queued === 1 ? "event" : "events"}` },
      { name: "Tried", number: true, of: (row) => `${count(row.attempts)}×` },
      { name: "Since", of: (row) => html`<${Time} at=${row.since} />` },
      { name: "What to do", of: (row) => html`<${Actions} row=${row} act=${act} />` },
    ]} />`}
    ${parked > keys.length && keys.length > 0 && html`<p class="faint">The first ${count(keys.length)} of ${count(parked)} keys. <code>ebb parked list ${name}</code> lists them all.</p>`}
  </section>`;
}

/** Skipping loses an event for good, so it takes a second click. */
function Actions({ row, act }) {
  const [state, set] = useState("");
  const cancel = useRef();
  useEffect(() => {
    // Not on what can't be undone: Enter, pressed twice, leaves nothing out.
    if (state === "sure") cancel.current?.focus();
  }, [state]);
  const run = async (what, body) => {
    set("busy");
    await act(what, { key: row.key, ...body });
    set("");
  };
  if (state === "sure") {
    return html`<div class="actions" role="group" aria-label=${`Skip events of ${row.key}`} onKeyDown=${(event) => event.key === "Escape" && set("")}>
      <button type="button" class="danger" onClick=${() => run("skip", {})}>Leave out event ${count(row.position)}</button>
      ${row.queued > 1 && html`<button type="button" class="danger" onClick=${() => run("skip", { whole: true })}>Leave out all ${count(row.queued)}</button>`}
      <button type="button" ref=${cancel} onClick=${() => set("")}>Cancel</button>
    </div>`;
  }
  return html`<div class="actions">
    <button type="button" disabled=${state === "busy"} aria-label=${`Retry ${row.key}`} onClick=${() => run("retry")}>Retry</button>
    <button type="button" disabled=${state === "busy"} aria-label=${`Skip ${row.key}`} onClick=${() => set("sure")}>Skip…</button>
  </div>`;
}
