// Functions: state, instances, calls, errors and how long calls take, of an app or of the whole node.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { path } from "./client.js";
import { count, duration, Empty, html, Loading, State, Table, Trouble, usePolled } from "./parts.js";

/** Shown at once: a node may have ten thousand. */
const SHOWN = 100;

const KINDS = { warm: "good", loaded: "calm", cold: "faint" };
const id = (row) => `${row.app} ${row.function} ${row.module}`;

/** Calls a second between the last two answers, by function; also where the second one was that nothing has changed. */
function useRates(list, at) {
  const before = useRef({ at: 0, calls: new Map() });
  const [rates, set] = useState(new Map());
  useEffect(() => {
    if (!list || !at) return;
    const seconds = (at - before.current.at) / 1000;
    const calls = new Map(list.map((row) => [id(row), row.calls]));
    set(new Map([...calls].map(([key, value]) => [key, before.current.calls.has(key) ? Math.max(0, value - before.current.calls.get(key)) / seconds : 0])));
    before.current = { at, calls };
  }, [at]);
  return rates;
}

function columns(app, rates) {
  const rate = (row) => rates.get(id(row)) ?? 0;
  const all = [
    { name: "Function", order: "name", of: (row) => row.function },
    !app && { name: "App", of: (row) => row.app },
    { name: "State", of: (row) => html`<${State} kind=${KINDS[row.state] ?? "faint"}>${row.state}<//>` },
    { name: "Instances", number: true, order: "-instances", of: (row) => count(row.instances) },
    { name: "Calls", number: true, order: "-calls", of: (row) => count(row.calls) },
    { name: "Calls/s", number: true, of: (row) => (rate(row) >= 10 ? count(Math.round(rate(row))) : rate(row) > 0 ? rate(row).toFixed(1) : "0") },
    { name: "Errors", number: true, order: "-errors", of: (row) => (row.errors ? html`<span class="wrong">${count(row.errors)}</span>` : "0") },
    { name: "p50", number: true, of: (row) => duration(row.p50_micros) || "–" },
    { name: "p99", number: true, order: "-p99", of: (row) => duration(row.p99_micros) || "–" },
  ];
  return all.filter(Boolean);
}

export function FunctionList({ app }) {
  const [search, setSearch] = useState("");
  const [order, setOrder] = useState("name");
  const { data, at, problem } = usePolled(path(["functions"], { app, search, order, limit: SHOWN }));
  // An answer for another search stays until the next one is there.
  const last = useRef();
  if (data) last.current = data;
  const shown = data ?? last.current;
  const rates = useRates(shown?.functions, at);
  if (!shown) return problem ? html`<${Trouble} problem=${problem} />` : html`<${Loading} />`;
  const { functions, total, states } = shown;
  const said = `${count(total)} ${total === 1 ? "function" : "functions"}: ${count(states.warm)} warm, ${count(states.loaded)} loaded, ${count(states.cold)} cold`;
  return html`
    <${Trouble} problem=${problem} />
    <div class="tools">
      ${(total > 8 || search) && html`<label>Search <input type="search" value=${search} onInput=${(event) => setSearch(event.target.value)} /></label>`}
      <p class="faint" role="status">${said}${total > functions.length ? `; the first ${SHOWN} are shown: search, or sort by a column` : ""}</p>
    </div>
    ${functions.length === 0
      ? html`<${Empty}><p>${search ? `No function has “${search}” in its name or its app's.` : "There are no functions."}</p><//>`
      : html`<${Table} caption="Functions" hideCaption rows=${functions} columns=${columns(app, rates)} id=${id} order=${order} onOrder=${setOrder} />`}
    <p class="faint">Calls, errors and times are since the deployment, or since the node started. <em>Cold</em>: on disk only. <em>Loaded</em>: its code is in memory. <em>Warm</em>: it has instances.</p>`;
}

export const Functions = ({ app }) => html`<${FunctionList} app=${app} />`;
