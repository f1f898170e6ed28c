// The node: its apps, and its functions where it has several.

import { Command, count, Empty, html, link, Loading, State, Table, Time, Trouble } from "./parts.js";
import { FunctionList } from "./functions.js";

const columns = [
  { name: "App", of: (app) => html`<a href=${link("apps", app.app)}>${app.app}</a>` },
  { name: "State", of: (app) => (app.unavailable ? html`<${State} kind="bad">unavailable<//>` : html`<${State} kind="good">served<//>`) },
  { name: "Deployment", number: true, of: (app) => count(app.deployment?.number) },
  { name: "Deployed", of: (app) => html`<${Time} at=${app.deployment?.deployed_at} />` },
  { name: "Events", number: true, of: (app) => app.unavailable ? "" : html`<a href=${link("apps", app.app, "events")} aria-label=${`${count(app.position)} events of ${app.app}`}>${count(app.position)}</a>` },
  { name: "Aggregates", class: "names", of: (app) => app.aggregates?.join(", ") },
  { name: "Projections", class: "names", of: (app) => app.projections?.join(", ") },
];

export function Apps({ apps, problem }) {
  if (!apps) return problem ? html`<${Trouble} problem=${problem} />` : html`<${Loading} />`;
  if (apps.length === 0) {
    return html`<${Empty}>
      <p><strong>No app is deployed on this node yet.</strong> Deploy one from the folder with its <code>ebb.toml</code>:</p>
      <${Command}>${`ebb deploy . --server ${location.origin}`}<//>
      <p>There is none? Make one, build it and run it:</p>
      <${Command}>${"ebb new hello\nebb dev hello"}<//>
    <//>`;
  }
  return html`
    <${Trouble} problem=${problem} />
    <${Table} caption="Apps of this node" hideCaption rows=${apps} columns=${columns} id=${(app) => app.app} />
    <section aria-labelledby="functions"><h2 id="functions">Functions</h2><${FunctionList} /></section>`;
}
