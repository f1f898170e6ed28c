"""The projection `balances`: what every account holds, in the model `balances`."""

import json
from typing import List

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.projections import Event, Failure
from wit_world.imports import rows
from wit_world.imports.rows import Column, Value_Integer, Value_Text

BALANCES = "balances"


class Projections(exports.Projections):
    def apply(self, events: List[Event]) -> None:
        for index, event in enumerate(events):
            account = event.stream.removeprefix("account-")
            data = json.loads(event.data)
            match event.event_type:
                case "Opened":
                    owner, balance = Value_Text(data["owner"]), Value_Integer(0)
                    rows.put(BALANCES, account, [Column("owner", owner), Column("balance", balance)])
                case "Deposited":
                    rows.add(BALANCES, account, "balance", data["amount"])
                case "Withdrawn":
                    rows.add(BALANCES, account, "balance", -data["amount"])
                case "Closed":
                    rows.delete(BALANCES, account)
                case unknown:
                    # What was applied before it is kept.
                    raise Err(Failure(index, f"unheard of: {unknown}"))
