"""The aggregate `account`: what may be done with an account, and what comes of it."""

import json
from typing import List, Optional, Self

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.aggregates import Command, NewEvent, PastEvent, Refusal

# The most an account holds. Read models keep balances in signed 64 bits.
MOST = 2**63 - 1


def refused(code: str, message: str, **details: int) -> Exception:
    return Err(Refusal(code, message, json.dumps(details).encode() if details else None))


class Aggregate(exports.aggregates.Aggregate):
    """An account, as its events made it. Amounts are whole cents."""

    def __init__(self, key: str) -> None:
        self.status = "new"
        self.balance = 0

    @classmethod
    def restore(cls, key: str, snapshot: bytes) -> Self:
        account = cls(key)
        account.status, account.balance = json.loads(snapshot)
        return account

    def snapshot(self) -> Optional[bytes]:
        return json.dumps([self.status, self.balance]).encode()

    def apply(self, events: List[PastEvent]) -> None:
        for event in events:
            data = json.loads(event.data)
            match event.event_type:
                case "Opened":
                    self.status = "open"
                case "Deposited":
                    self.balance += data["amount"]
                case "Withdrawn":
                    self.balance -= data["amount"]
                case "Closed":
                    self.status = "closed"
                case unknown:
                    raise ValueError(f"unheard of: {unknown}")

    def decide(self, command: Command) -> List[NewEvent]:
        data = json.loads(command.data)
        event_type = self.decided(command.name, data)
        return [NewEvent(event_type, json.dumps(data, ensure_ascii=False).encode())]

    def decided(self, name: str, data: dict) -> str:
        """The type of the event that happens; its data is the command's."""
        amount = data.get("amount", 0)
        match (self.status, name):
            case ("open", "open"):
                raise refused("already_open", "the account is open already")
            case ("closed", _):
                raise refused("closed", "the account is closed")
            case ("new", "open"):
                if not data["owner"].strip():
                    raise refused("owner_missing", "an account needs an owner")
                return "Opened"
            case ("new", _):
                raise refused("not_open", "the account was never opened")
            case (_, "deposit"):
                if self.balance + amount > MOST:
                    raise refused(
                        "account_full", "the account can't hold that much", balance=self.balance, amount=amount
                    )
                return "Deposited"
            case (_, "withdraw"):
                short_by = amount - self.balance
                if short_by > 0:
                    raise refused(
                        "insufficient_funds",
                        f"{short_by} cents short of {amount}",
                        balance=self.balance,
                        amount=amount,
                        short_by=short_by,
                    )
                return "Withdrawn"
            case (_, "close"):
                if self.balance > 0:
                    raise refused(
                        "account_not_empty", f"the account still holds {self.balance} cents", balance=self.balance
                    )
                return "Closed"
        raise ValueError(f"unheard of: {name}")
