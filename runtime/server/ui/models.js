// Rows of a model, as callers get them: in pages, sorted, with how fresh they are.

import { useEffect, useState } from "./vendor/hooks.js";
import { ask, path } from "./client.js";
import { count, Empty, html, link, Loading, Table, Trouble } from "./parts.js";

/** Rows of a page. */
const PAGE = 50;
const OPERATORS = [["eq", "="], ["ne", "≠"], ["gt", ">"], ["gte", "≥"], ["lt", "<"], ["lte", "≤"]];

export function Models({ app, entry, rest }) {
  const model = rest[0] ?? entry.models[0];
  if (!model) {
    return html`<${Empty}><p><strong>This app has no models.</strong> A model is a table that a projection keeps from events: declare it in <code>ebb.toml</code> under <code>[model.NAME]</code>, and deploy again.</p><//>`;
  }
  return html`
    ${entry.models.length > 1 && html`<nav class="sub" aria-label="Models">${entry.models.map((name) => html`<a key=${name} href=${link("apps", app, "models", name)} aria-current=${name === model ? "page" : undefined}>${name}</a>`)}</nav>`}
    <${Rows} key=${model} app=${app} model=${model} of=${entry.model_keys?.[model]} />`;
}

const shown = (value) => (value === null ? html`<span class="faint">null</span>` : typeof value === "object" ? html`<code>${JSON.stringify(value)}</code>` : String(value));

// Rows that come straight from topics have no position of the log.
function freshness({ position, lag }) {
  if (position === null) return lag ? `Straight from topics, ${count(lag)} records behind` : "Straight from topics, all that they have";
  return `As of position ${count(Number(position))}${lag ? `, ${count(lag)} events behind the log` : ", all of the log"}`;
}

function Rows({ app, model, of }) {
  const [order, setOrder] = useState(undefined);
  const [filter, setFilter] = useState(null);
  // The cursors that led here: the last one is of this page.
  const [cursors, setCursors] = useState([]);
  const [answer, set] = useState({});
  const [columns, setColumns] = useState([]);
  const [again, setAgain] = useState(0);
  const cursor = cursors.at(-1);
  useEffect(() => {
    const stop = new AbortController();
    const parameters = { limit: PAGE, order, cursor };
    if (filter) parameters[`${filter.column}.${filter.operator}`] = filter.value;
    ask(path(["apps", app, "models", model], parameters), { signal: stop.signal })
      .then(({ data, headers }) => {
        // The key stands first: it is what names the row.
        if (data.items.length) setColumns(Object.keys(data.items[0]).sort((a, b) => (b === of) - (a === of)));
        set({ ...data, position: headers.get("ebb-position"), lag: Number(headers.get("ebb-lag")), parked: Number(headers.get("ebb-parked")) });
      })
      .catch((problem) => stop.signal.aborted || set((before) => ({ ...before, problem })));
    return () => stop.abort();
  }, [app, model, order, cursor, filter, again]);

  const sort = (column) => {
    setOrder((before) => (before === column ? `-${column}` : column));
    setCursors([]);
  };
  const items = answer.items;
  if (!items) return answer.problem ? html`<${Trouble} problem=${answer.problem} />` : html`<${Loading} />`;
  const isNumber = (name) => items.length > 0 && items.every((row) => row[name] === null || typeof row[name] === "number");
  const first = cursors.length * PAGE + 1;
  return html`
    <${Trouble} problem=${answer.problem} />
    ${columns.length > 0 && html`<${Filter} columns=${columns} apply=${(next) => { setFilter(next); setCursors([]); }} />`}
    <p class="faint" role="status">${freshness(answer)}${answer.parked ? html`; <a href=${link("apps", app, "projections")}>${count(answer.parked)} parked keys</a> lack events` : ""}. <button type="button" class="quiet" onClick=${() => setAgain(again + 1)}>Read again</button></p>
    ${items.length === 0
      ? html`<${Empty}><p><strong>${filter ? "No row fits." : cursors.length ? "There are no more rows." : `Model ${model} has no rows yet.`}</strong> ${filter || cursors.length ? "" : "Its projection writes them from events."}</p><//>`
      : html`<${Table} caption=${`Rows ${count(first)} to ${count(first + items.length - 1)} of ${model}`} rows=${items} id=${(row) => JSON.stringify(row)}
          columns=${columns.map((name) => ({ name, number: isNumber(name), order: order === name ? name : order === `-${name}` ? `-${name}` : name, of: (row) => shown(row[name]) }))}
          order=${order} onOrder=${(column) => sort(column.replace(/^-/, ""))} />`}
    <p class="tools">
      <button type="button" disabled=${cursors.length === 0} onClick=${() => setCursors(cursors.slice(0, -1))}>Previous rows</button>
      <button type="button" disabled=${!answer.next} onClick=${() => setCursors([...cursors, answer.next])}>Next rows</button>
    </p>`;
}

function Filter({ columns, apply }) {
  const [column, setColumn] = useState(columns[0]);
  const [operator, setOperator] = useState("eq");
  const [value, setValue] = useState("");
  const submit = (event) => {
    event.preventDefault();
    apply(value === "" ? null : { column, operator, value });
  };
  return html`<form class="tools" onSubmit=${submit} aria-label="Filter rows">
    <label>Column <select value=${column} onChange=${(event) => setColumn(event.target.value)}>${columns.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
    <label><span class="unseen">Comparison</span><select value=${operator} onChange=${(event) => setOperator(event.target.value)}>${OPERATORS.map(([name, sign]) => html`<option key=${name} value=${name}>${sign}</option>`)}</select></label>
    <label>Value <input type="text" value=${value} onInput=${(event) => setValue(event.target.value)} spellcheck=${false} autocapitalize="off" /></label>
    <button type="submit">Filter</button>
  </form>`;
}
